"""The main function of a MindIR file: its layers, the tensors that flow between them, and the forbidden cuts.

Nodes are constants, helpers (`Load` reads a weight, `MakeTuple` and `TupleGetItem` pack and unpack, `UpdateState` and
`Depend` order memory effects with a token, the monad) or operators. An operator that depends on an input of the
network is a layer; one that takes a monad changes memory.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeGuard

import numpy as np

from loadpart.mindir.v1 import mindir_pb2
from loadpart_common.errors import ModelError
from loadpart_common.formats.mindir.batch import allows_any_batch
from loadpart_common.formats.mindir.dtypes import DTYPE_BY_NUMBER
from loadpart_common.formats.mindir.families import family_of
from loadpart_common.formats.mindir.flops import flops
from loadpart_common.graph import Barrier, Graph, Layer, Value, output_specs
from loadpart_common.tensors import BATCH, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Tree: TypeAlias = "Value | tuple[Tree, ...] | None"
"""What a name stands for: a tensor of the graph, a tuple, or (None) something made of weights and constants alone."""

_HELPERS = frozenset({"Load", "UpdateState", "Depend", "MakeTuple", "TupleGetItem"})
_CONTROL_FLOW = frozenset({"Switch", "SwitchLayer", "Partial", "Call", "While", "If"})
_MONADS = frozenset({mindir_pb2.ATTRIBUTE_TYPE_UMONAD, mindir_pb2.ATTRIBUTE_TYPE_IOMONAD})
_TUPLES = frozenset({mindir_pb2.ATTRIBUTE_TYPE_TUPLE, mindir_pb2.ATTRIBUTE_TYPE_LIST})
_UNKNOWN_SIZE, _UNKNOWN_RANK = -1, -2


def is_packed(tree: Tree) -> TypeGuard[tuple[Tree, ...]]:
    """Whether a tree is a tuple of trees."""
    return isinstance(tree, tuple) and not isinstance(tree, Value)


class Output(NamedTuple):
    """An output of the program: the name of its value, and the monads that must be computed before it."""

    name: str
    monads: tuple[str, ...]


class Program:
    """The nodes of a MindIR model, interpreted.

    Attributes:
        model: The message, without the elements of its weights.
        nodes: Every node, by name, in file order.
        layer_nodes: The node of each layer, by the layer's index.
        layer_of: Index of each layer, by the name of its node.
        outputs: The outputs, flattened.
        effects: Indices of the layers that change memory.
        graph: The network as a format-neutral graph.
    """

    def __init__(self, model: mindir_pb2.Model) -> None:
        """Reads a model.

        Raises:
            ModelError: The model has control flow, dynamic shapes other than the batch, or weights that it changes; the
                message names the node.
        """
        self.model = model
        try:
            self._read(model)
        except (ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            # A damaged file may parse as a message and still be invalid, in more ways than can be listed.
            raise ModelError(f"the model is damaged: {error!r}") from error

    def _read(self, model: mindir_pb2.Model) -> None:
        self.nodes = {node.name: node for node in model.graph.node}
        self._primitives = {primitive.name: primitive for primitive in model.primitives}
        self._inputs = {info.name: Value(-1, i) for i, info in enumerate(model.graph.input)}
        self._parameters = {tensor.name: tuple(tensor.dims) for tensor in model.graph.parameter}
        self._weight_bytes = {
            tensor.name: math.prod(tensor.dims) * np.dtype(DTYPE_BY_NUMBER[tensor.data_type]).itemsize
            for tensor in model.graph.parameter
        }
        self._kinds = {name: self._kind(node) for name, node in self.nodes.items()}
        self._monads: set[str] = set()
        self._trees: dict[str, Tree] = {}
        self.layer_nodes: list[mindir_pb2.Node] = []
        self.layer_of: dict[str, int] = {}
        self.effects: list[int] = []
        self._walk()
        self.outputs = tuple(output for info in model.graph.output for output in self._flat_outputs(info.name))
        self.graph = self._build_graph()

    def kind(self, name: str) -> str:
        """Operator kind of a node; `Constant` of a constant; empty for inputs and weights."""
        return self._kinds.get(name, "")

    def inputs(self, name: str) -> Sequence[str]:
        """Names of a node's inputs."""
        return self.nodes[name].input

    def is_input(self, name: str) -> bool:
        """Whether a name is that of an input of the network."""
        return name in self._inputs

    def is_monad(self, name: str) -> bool:
        """Whether a name stands for a monad."""
        return name in self._monads

    def tree(self, name: str) -> Tree:
        """What a name stands for."""
        return self._trees[name]

    def members(self, name: str) -> Iterator[str]:
        """The names that a tuple packs, however deep; the name itself when it is no packed tuple."""
        if self.kind(name) == "MakeTuple":
            for member in self.nodes[name].input:
                yield from self.members(member)
        else:
            yield name

    def constant(self, name: str) -> tuple[int, ...] | None:
        """The integers of a constant (one for a scalar); None when the name is no constant of integers."""
        if self.kind(name) != "Constant":
            return None
        (attribute,) = self.nodes[name].attribute
        return tuple(_integers(attribute))

    def settings(self, name: str, *keys: str) -> tuple[int, ...]:
        """The integers of the first setting among `keys` that a node's primitive has; empty when it has none."""
        primitive = self._primitives[self.nodes[name].op_type.removeprefix("REF::")]
        by_name = {attribute.name: attribute for attribute in primitive.attribute}
        return next((tuple(_integers(by_name[key])) for key in keys if key in by_name), ())

    def _kind(self, node: mindir_pb2.Node) -> str:
        if node.op_type == "Constant":
            return "Constant"
        primitive = self._primitives.get(node.op_type.removeprefix("REF::"))
        if primitive is None or primitive.op_type in _CONTROL_FLOW:
            what = primitive.op_type if primitive else "a call of another function"
            raise ModelError(f"node {_title(node)} is control flow ({what}), which cannot be cut")
        return primitive.op_type

    def _walk(self) -> None:
        """Gives every name its tree and every layer its index, in file order, which is topological."""
        self._trees.update(self._inputs)
        self._trees.update(dict.fromkeys(self._parameters))
        wanted = self._reachable()
        for name, node in self.nodes.items():
            if name not in wanted:
                continue
            missing = next((source for source in node.input if source not in self._trees), None)
            if missing is not None:
                raise ModelError(f"node {_title(node)} uses {missing!r}, which nothing before it makes")
            kind = self._kinds[name]
            if kind == "UpdateState" or (kind == "Constant" and node.attribute[0].type in _MONADS):
                self._monads.add(name)
            if kind == "Constant" or kind in _HELPERS:
                self._trees[name] = self._helper_tree(kind, node)
            else:
                self._trees[name] = self._operator_tree(node)

    def _reachable(self) -> set[str]:
        """Names that the outputs need, memory effects included."""
        wanted: set[str] = set()
        pending = [info.name for info in self.model.graph.output]
        while pending:
            name = pending.pop()
            if name not in wanted:
                wanted.add(name)
                pending.extend(self.nodes[name].input if name in self.nodes else ())
        return wanted

    def _helper_tree(self, kind: str, node: mindir_pb2.Node) -> Tree:
        if kind in {"Constant", "UpdateState"}:
            return None
        if kind == "MakeTuple":
            trees = tuple(self._trees[source] for source in node.input)
            return trees if any(tree is not None for tree in trees) else None
        first = self._trees[node.input[0]]
        if kind != "TupleGetItem" or first is None:
            return first
        element = self.constant(node.input[1])
        if not element or not is_packed(first):
            raise ModelError(f"node {_title(node)} takes a varying element of a tuple, which cannot be cut")
        return first[element[0]]

    def _operator_tree(self, node: mindir_pb2.Node) -> Tree:
        changes_memory = any(source in self._monads for source in node.input)
        if not changes_memory and all(self._trees[source] is None for source in node.input):
            return None  # made of weights and constants: each side computes it
        weight = next((source for source in node.input if changes_memory and source in self._parameters), None)
        if weight is not None:
            raise ModelError(
                f"node {_title(node)} changes the weight {weight!r}; only networks without state can be served "
                "(was it exported in training mode?)"
            )
        index = len(self.layer_nodes)
        self.layer_nodes.append(node)
        self.layer_of[node.name] = index
        if changes_memory:
            self.effects.append(index)
        count = len(list(_shapes(node)))
        return Value(index, 0) if count == 1 else tuple(Value(index, element) for element in range(count))

    def _flat_outputs(self, name: str, monads: tuple[str, ...] = ()) -> Iterator[Output]:
        kind = self.kind(name)
        if kind == "Depend":
            source, monad = self.nodes[name].input[:2]
            yield from self._flat_outputs(source, (*monads, monad))
        elif kind == "MakeTuple":
            for source in self.nodes[name].input:
                yield from self._flat_outputs(source, monads)
        else:
            yield Output(name, monads)

    def _build_graph(self) -> Graph:
        uses = [self._values(node.input) for node in self.layer_nodes]
        outputs: list[Value] = []
        for output in self.outputs:
            values = self._values([output.name])
            if not values:
                raise ModelError(f"output {output.name!r} does not depend on any input")
            outputs.extend(values)
        batch = self._batch({value for values in uses for value in values} | set(outputs))
        names = _unique_names(self.layer_nodes)
        layers = tuple(
            self._layer(node, name, values, batch)
            for node, name, values in zip(self.layer_nodes, names, uses, strict=True)
        )
        inputs = tuple(
            _specification(info.name.rpartition(":")[2], info.tensor, batch, f"input {info.name!r}")
            for info in self.model.graph.input
        )
        barriers = tuple(self._barrier(index, uses, outputs) for index in self.effects)
        return Graph(inputs, layers, tuple(outputs), barriers)

    def _values(self, names: Iterable[str]) -> tuple[Value, ...]:
        """The tensors of the graph that names stand for, each once."""
        found: dict[Value, None] = {}
        for name in names:
            found.update(dict.fromkeys(_leaves(self._trees[name])))
        return tuple(found)

    def _layer(self, node: mindir_pb2.Node, name: str, inputs: tuple[Value, ...], batch: int | None) -> Layer:
        kind = self._kinds[node.name]
        specs = [_specification(name, tensor, batch, f"node {_title(node)}") for tensor in _shapes(node)]
        sources = [source for packed in node.input for source in self.members(packed)]
        shapes = [shape for shape in map(self.shape, sources) if shape is not None]
        operations = flops(kind, shapes, specs[0].concrete(1), self.settings(node.name, "kernel_size"))
        items = batch if batch and specs[0].shape[:1] != (BATCH,) else 1
        weights = {weight for source in sources if (weight := self._weight(source)) is not None}
        return Layer(
            name=name,
            kind=kind,
            family=family_of(kind),
            inputs=inputs,
            outputs=output_specs(name, [(spec.dtype, spec.shape) for spec in specs]),
            flops=operations // items,
            weight_bytes=sum(self._weight_bytes[weight] for weight in weights),
        )

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor for one item of the batch; None when the name is no tensor."""
        if name in self._inputs:
            dims: tuple[int, ...] = tuple(self.model.graph.input[self._inputs[name].element].tensor.dims)
        elif name in self._parameters:
            dims = self._parameters[name]
        else:
            node = self.nodes[name]
            tensors = list(_shapes(node)) if self._kinds[name] not in {"Constant", "UpdateState"} else []
            if len(tensors) != 1:
                return None
            dims = tuple(tensors[0].dims)
        return tuple(max(size, 1) for size in dims)

    def _weight(self, name: str) -> str | None:
        if self.kind(name) == "Load":
            name = self.nodes[name].input[0]
        return name if name in self._parameters else None

    def _batch(self, used: set[Value]) -> int | None:
        """The batch size in the file, `BATCH` if it is open, or None if the network needs exactly the file's shapes."""
        sizes = {tuple(info.tensor.dims)[:1] for info in self.model.graph.input}
        if len(sizes) != 1 or sizes == {()}:
            return None
        ((batch,),) = sizes
        if batch == _UNKNOWN_SIZE:
            return BATCH
        leading = all(
            tuple(list(_shapes(self.layer_nodes[value.layer]))[value.element].dims)[:1] == (batch,)
            for value in used
            if value.layer >= 0
        )
        return batch if leading and all(allows_any_batch(self, node.name) for node in self.layer_nodes) else None

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


def _integers(attribute: mindir_pb2.Attribute) -> Iterator[int]:
    if attribute.type in _TUPLES:
        for element in attribute.values:
            yield from _integers(element)
    elif attribute.HasField("i"):
        yield attribute.i
    else:
        yield from attribute.ints


def _shapes(node: mindir_pb2.Node) -> Iterator[mindir_pb2.Tensor]:
    """Shape and type of a node's output; several for a tuple."""
    shape = next((attribute for attribute in node.attribute if attribute.name == "shape"), None)
    if shape is None:
        raise ModelError(f"node {_title(node)} has no shape: was the model exported with `file_format='MINDIR'`?")
    elements = shape.values if shape.type in _TUPLES else [shape]
    for element in elements:
        yield element.tensors[0] if element.tensors else mindir_pb2.Tensor()


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


def _title(node: mindir_pb2.Node) -> str:
    return repr(_place(node) or node.name)


def _place(node: mindir_pb2.Node) -> str:
    """Where a node stands in the network.

    `Default/features-SequentialCell/0-Conv2d/Conv2D-op0` is `features/0/Conv2D-op0`.
    """
    *cells, operator = node.domain.removeprefix("Default/").split("/")
    return "/".join([*(cell.rpartition("-")[0] or cell for cell in cells), operator])


def _unique_names(nodes: list[mindir_pb2.Node]) -> list[str]:
    seen: dict[str, int] = {}
    names = []
    for node in nodes:
        place = _place(node) or node.name
        seen[place] = seen.get(place, 0) + 1
        names.append(place if seen[place] == 1 else f"{place}#{seen[place]}")
    return names
