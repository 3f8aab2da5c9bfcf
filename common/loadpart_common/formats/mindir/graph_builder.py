"""Makes the format-neutral graph of a program: layers, the batch, and the stretches that must not be cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.errors import ModelError
from loadpart_common.formats.mindir.batch import allows_any_batch
from loadpart_common.formats.mindir.dtypes import DTYPE_BY_NUMBER
from loadpart_common.formats.mindir.families import family_of
from loadpart_common.formats.mindir.flops import flops
from loadpart_common.formats.mindir.nodes import place, reporting_damage, shapes, title
from loadpart_common.graph import Barrier, Graph, Layer, Value, output_specs, unique_names
from loadpart_common.tensors import BATCH, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from loadpart.mindir.v1 import mindir_pb2
    from loadpart_common.formats.mindir.program import Program, Tree

_UNKNOWN_SIZE = -1


def build_graph(program: Program) -> Graph:
    """The graph of a program.

    Raises:
        ModelError: A shape is dynamic beyond the batch, or an element type cannot be sent; the message names the node.
    """
    with reporting_damage():
        return _Builder(program).build()


class _Builder:
    def __init__(self, program: Program) -> None:
        self._program = program

    def build(self) -> Graph:
        """The graph."""
        uses = [self._values(node.input) for node in self._program.layer_nodes]
        outputs: list[Value] = []
        for output in self._program.outputs:
            values = self._values([output.name])
            if not values:
                raise ModelError(f"output {output.name!r} does not depend on any input")
            outputs.extend(values)
        batch = self._batch({value for values in uses for value in values} | set(outputs))
        names = unique_names(place(node) or node.name for node in self._program.layer_nodes)
        layers = tuple(
            self._layer(node, name, values, batch)
            for node, name, values in zip(self._program.layer_nodes, names, uses, strict=True)
        )
        inputs = tuple(
            _specification(info.name.rpartition(":")[2], info.tensor, batch, f"input {info.name!r}")
            for info in self._program.model.graph.input
        )
        barriers = tuple(self._barrier(index, uses, outputs) for index in self._program.effects)
        return Graph(inputs, layers, tuple(outputs), barriers)

    def _values(self, names: Iterable[str]) -> tuple[Value, ...]:
        """The tensors of the graph that names stand for, each once."""
        found: dict[Value, None] = {}
        for name in names:
            found.update(dict.fromkeys(_leaves(self._program.tree(name))))
        return tuple(found)

    def _layer(self, node: mindir_pb2.Node, name: str, inputs: tuple[Value, ...], batch: int | None) -> Layer:
        kind = self._program.kind(node.name)
        specs = [_specification(name, tensor, batch, f"node {title(node)}") for tensor in shapes(node)]
        sources = [source for packed in node.input for source in self._program.members(packed)]
        taken = [shape for shape in map(self._program.shape, sources) if shape is not None]
        operations = flops(kind, taken, specs[0].concrete(1), self._program.attributes(node.name, "kernel_size"))
        items = batch if batch and specs[0].shape[:1] != (BATCH,) else 1
        weights = {weight for source in sources if (weight := self._weight(source)) is not None}
        return Layer(
            name=name,
            kind=kind,
            family=family_of(kind),
            inputs=inputs,
            outputs=output_specs(name, [(spec.dtype, spec.shape) for spec in specs]),
            flops=operations // items,
            weight_bytes=sum(self._program.weight_bytes(weight) for weight in weights),
        )

    def _weight(self, name: str) -> str | None:
        if self._program.kind(name) == "Load":
            name = self._program.nodes[name].input[0]
        return name if name in self._program.weights else None

    def _batch(self, used: set[Value]) -> int | None:
        """The batch size in the file, `BATCH` if it is open, or None if the network needs exactly the file's shapes."""
        sizes = {tuple(info.tensor.dims)[:1] for info in self._program.model.graph.input}
        if len(sizes) != 1 or sizes == {()}:
            return None
        ((batch,),) = sizes
        if batch == _UNKNOWN_SIZE:
            return BATCH
        leading = all(
            tuple(list(shapes(self._program.layer_nodes[value.layer]))[value.element].dims)[:1] == (batch,)
            for value in used
            if value.layer >= 0
        )
        nodes = self._program.layer_nodes
        return batch if leading and all(allows_any_batch(self._program, node.name) for node in nodes) else None

    def _barrier(self, index: int, uses: list[tuple[Value, ...]], outputs: list[Value]) -> Barrier:
        """The stretch of layers that shares memory with a layer that changes it.

        It runs from the layers that compute that layer's inputs to the last layer that reads these.
        """
        shared = set(uses[index])
        first = min((value.layer for value in shared), default=index)
        last = max([index, *(reader for reader, values in enumerate(uses) if shared & set(values))])
        if shared & set(outputs):
            last = len(uses) - 1
        return Barrier(max(first, 0), last, index)


def _leaves(tree: Tree) -> Iterator[Value]:
    if isinstance(tree, Value):
        yield tree
    elif tree is not None:
        for branch in tree:
            yield from _leaves(branch)


def _specification(name: str, tensor: mindir_pb2.Tensor, batch: int | None, what: str) -> TensorSpec:
    dtype = DTYPE_BY_NUMBER.get(tensor.data_type)
    if dtype is None:
        raise ModelError(f"{what} has the element type {tensor.data_type}, which cannot be sent")
    shape = tuple(tensor.dims)
    if batch is not None and shape[:1] == (batch,):
        shape = (BATCH, *shape[1:])
    if any(size < 0 for size in shape[1:]) or (shape[:1] != (BATCH,) and any(size < 0 for size in shape)):
        raise ModelError(f"{what} has the dynamic shape {list(tensor.dims)}; only the leading batch may vary")
    return TensorSpec(name, dtype, shape)
