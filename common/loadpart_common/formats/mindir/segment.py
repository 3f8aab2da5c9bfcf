"""Writes part of a program as a model of its own.

The new model keeps the operators of the part, the constants and weights that they need, and as much of the chain of
monads as orders the memory effects among them. Tensors from outside become inputs. Weights are named but empty:
the engine fills them in, so that all segments of a model share one copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart.mindir.v1 import mindir_pb2
from loadpart_common.formats.mindir.dtypes import NUMBER_BY_DTYPE
from loadpart_common.formats.mindir.program import is_packed
from loadpart_common.graph import Graph, Segment, Value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadpart_common.formats.mindir.program import Program

_MAKE_TUPLE, _GET_ITEM, _DEPEND = "MakeTuple", "TupleGetItem", "Depend"


def write_segment(program: Program, graph: Graph, segment: Segment, batch: int) -> mindir_pb2.Model:
    """The segment as a MindIR model that takes `batch` items."""
    return _Writer(program, graph, segment, batch).write()


class _Writer:
    def __init__(self, program: Program, graph: Graph, segment: Segment, batch: int) -> None:
        self._program = program
        self._graph = graph
        self._segment = segment
        self._batch = batch
        self._model = mindir_pb2.Model()
        self._names: dict[str, str] = {}  # name in the program: name in the segment
        self._kept: dict[str, list[str]] = {}  # nodes of this segment that each UpdateState orders
        self._effective: set[str] = set()  # monads that order something in this segment

    def write(self) -> mindir_pb2.Model:
        source, model = self._program.model, self._model
        model.CopyFrom(source)
        for field in ("node", "parameter", "input", "output"):
            model.graph.ClearField(field)
        model.ClearField("primitives")
        self._find_effects()
        for value in self._segment.inputs:
            info = model.graph.input.add(name=self._input_name(value))
            self._describe(info.tensor, value)
        outputs = [self._output(value) for value in self._segment.outputs]
        needed = self._needed(name for output in outputs for name in output)
        parameters = {tensor.name: tensor for tensor in source.graph.parameter}
        for name, tensor in parameters.items():
            self._names[name] = name
            if name in needed:
                model.graph.parameter.add().CopyFrom(tensor)
        for name in self._program.nodes:
            if name in needed:
                self._emit(name)
        self._emit_outputs(outputs)
        used = {node.op_type.removeprefix("REF::") for node in model.graph.node}
        for primitive in source.primitives:
            if primitive.name in used:
                model.primitives.add().CopyFrom(primitive)
        for kind in (_MAKE_TUPLE, _GET_ITEM, _DEPEND):
            if _reference(kind).removeprefix("REF::") in used:
                model.primitives.add(name=_reference(kind).removeprefix("REF::"), op_type=kind, prim_type=1)
        return model

    def _inside(self, name: str) -> bool:
        layer = self._program.layer_of.get(name, -1)
        return self._segment.first <= layer < self._segment.stop

    def _outside_layer(self, name: str) -> bool:
        return name in self._program.layer_of and not self._inside(name)

    def _find_effects(self) -> None:
        """Finds the entries in the chain of monads that order layers of this segment."""
        for name, node in self._program.nodes.items():
            if self._program.kind(name) != "UpdateState" or not self._program.is_monad(name):
                continue
            before, *ordered = node.input
            members = [member for packed in ordered for member in self._program.members(packed)]
            self._kept[name] = [member for member in members if self._reads_or_writes_inside(member)]
            if self._kept[name] or before in self._effective:
                self._effective.add(name)

    def _reads_or_writes_inside(self, name: str) -> bool:
        if self._program.kind(name) == "Load":
            name = self._program.nodes[name].input[0]
        return self._inside(name)

    def _sources(self, name: str) -> list[str]:
        """Names of a node's inputs, without those that the segment leaves out."""
        node = self._program.nodes[name]
        kind = self._program.kind(name)
        if kind == "UpdateState":
            return [node.input[0], *self._kept[name]]
        if self._outside_layer(name) or self._replacement(name) is not None:
            return []
        if kind == "Depend" and node.input[1] not in self._effective:
            return [node.input[0]]
        return list(node.input)

    def _replacement(self, name: str) -> str | None:
        """The input of the segment that stands for a node which picks or reads a tensor of another segment."""
        if self._program.kind(name) not in {"TupleGetItem", "Load"}:
            return None
        tree = self._program.tree(name)
        outside = isinstance(tree, Value) and not self._segment.first <= tree.layer < self._segment.stop
        return self._input_name(tree) if isinstance(tree, Value) and outside else None

    def _needed(self, names: Iterable[str]) -> set[str]:
        effects = [self._program.layer_nodes[layer].name for layer in self._program.effects]
        pending = [*names, *(name for name in effects if self._inside(name))]
        needed: set[str] = set()
        while pending:
            name = pending.pop()
            if name not in needed:
                needed.add(name)
                pending.extend(self._sources(name) if name in self._program.nodes else ())
        return needed

    def _emit(self, name: str) -> None:
        node = self._program.nodes[name]
        kind = self._program.kind(name)
        replacement = self._replacement(name)
        if replacement is not None:
            self._names[name] = replacement
        elif self._outside_layer(name):
            self._names[name] = self._bring_in(name)
        elif (kind == "UpdateState" and not self._kept[name]) or (
            kind == "Depend" and node.input[1] not in self._effective
        ):
            self._names[name] = self._names[node.input[0]]
        else:
            copy = self._model.graph.node.add()
            copy.CopyFrom(node)
            copy.input[:] = [self._name(source) for source in self._sources(name)]
            self._names[name] = name

    def _bring_in(self, name: str) -> str:
        """The name for the output of a layer of another segment: an input, or a tuple that packs several inputs."""
        layer = self._program.layer_of[name]
        values = [Value(layer, element) for element in range(len(self._graph.layers[layer].outputs))]
        if not is_packed(self._program.tree(name)):
            return self._input_name(values[0])
        packed = self._add_node(_MAKE_TUPLE, name, [self._input_name(value) for value in values])
        self._describe_tuple(packed.attribute.add(name="shape"), values)
        return packed.name

    def _name(self, name: str) -> str:
        if self._program.is_input(name):
            tree = self._program.tree(name)
            assert isinstance(tree, Value)
            return self._input_name(tree)
        return self._names[name]

    def _input_name(self, value: Value) -> str:
        if value.layer < 0:
            return self._program.model.graph.input[value.element].name
        return f"{self._program.layer_nodes[value.layer].name}.{value.element}"

    def _output(self, value: Value) -> tuple[str, ...]:
        """Names in the program that compute a value of the segment: its own, and the monads to wait for."""
        if value in self._graph.outputs:
            for output in self._program.outputs:
                if self._program.tree(output.name) == value:
                    return (output.name, *(monad for monad in output.monads if monad in self._effective))
        return (self._program.layer_nodes[value.layer].name,)

    def _emit_outputs(self, outputs: list[tuple[str, ...]]) -> None:
        values = self._segment.outputs
        names = []
        for value, (name, *monads) in zip(values, outputs, strict=True):
            emitted = self._name(name)
            if is_packed(self._program.tree(name)):
                emitted = self._pick(emitted, value)
            for monad in monads:
                node = self._add_node(_DEPEND, emitted, [emitted, self._names[monad]])
                self._describe_tuple(node.attribute.add(name="shape"), [value])
                emitted = node.name
            names.append(emitted)
        if len(names) == 1:
            info = self._model.graph.output.add(name=names[0])
            self._describe(info.tensor, values[0])
            return
        packed = self._add_node(_MAKE_TUPLE, "outputs", names)
        self._describe_tuple(packed.attribute.add(name="shape"), values)
        info = self._model.graph.output.add(name=packed.name, denotation="Tuple")
        self._describe_tuple(info.attr_info, values)

    def _pick(self, name: str, value: Value) -> str:
        """Takes one element of a tuple."""
        index = self._model.graph.node.add(name=f"{name}.index{value.element}", op_type="Constant")
        index.output.append(index.name)
        index.attribute.add(name="value", type=mindir_pb2.ATTRIBUTE_TYPE_INT64, i=value.element)
        node = self._add_node(_GET_ITEM, f"{name}.{value.element}", [name, index.name])
        self._describe_tuple(node.attribute.add(name="shape"), [value])
        return node.name

    def _add_node(self, kind: str, name: str, inputs: list[str]) -> mindir_pb2.Node:
        full = f"{name}.{kind}"
        return self._model.graph.node.add(name=full, op_type=_reference(kind), input=inputs, output=[full])

    def _describe(self, tensor: mindir_pb2.Tensor, value: Value) -> None:
        spec = self._graph.spec(value)
        tensor.dims.extend(spec.concrete(self._batch))
        tensor.data_type = NUMBER_BY_DTYPE[spec.dtype]

    def _describe_tuple(self, attribute: mindir_pb2.Attribute, values: Iterable[Value]) -> None:
        """Writes the shapes of values: one shape plainly, several as a tuple."""
        values = list(values)
        if len(values) == 1:
            attribute.type = mindir_pb2.ATTRIBUTE_TYPE_TENSORS
            self._describe(attribute.tensors.add(), values[0])
            return
        attribute.type = mindir_pb2.ATTRIBUTE_TYPE_TUPLE
        for value in values:
            element = attribute.values.add(type=mindir_pb2.ATTRIBUTE_TYPE_TENSORS)
            self._describe(element.tensors.add(), value)


def _reference(kind: str) -> str:
    return f"REF::{kind}:loadpart"
