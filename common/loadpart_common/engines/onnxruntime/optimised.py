"""A network as ONNX Runtime optimises it for this machine, and where its values are in there.

The optimiser fuses operators, so that some values are gone, and keeps images in blocks of channels (NCHWc, Georganas
et al., SC 2018, "Anatomy of high-performance deep learning convolutions on SIMD architectures"). What a blocked tensor
holds is read off the names that the optimiser gives: nodes that it makes are named after the tensor that they replace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import onnx
from onnx import helper

from loadpart_common.formats.onnx_program import captured, value_info

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from loadpart_common.formats.onnx_program import OnnxProgram
    from loadpart_common.graph import Graph, Segment, Value

_NCHWC = "com.microsoft.nchwc"
_SUFFIX = "_nchwc"
_SUM_INPUT = 3
"""Input of a blocked convolution that is added to its result."""

_CHANNEL_STEP = 4
"""ONNX Runtime brings images into blocks whose number of channels is a multiple of this."""


class _Place(NamedTuple):
    """Where a value is in the optimised network.

    Attributes:
        plain: The tensor that is the value; empty when there is none.
        blocked: The tensor that holds it in blocks of channels; empty when there is none.
    """

    plain: str
    blocked: str

    @property
    def crossing(self) -> str:
        """What the value is called where it enters or leaves a segment."""
        return self.plain or f"{self.blocked}.plain"


class _Pieces(NamedTuple):
    """What a segment is made of.

    Attributes:
        inputs: Where its inputs are.
        nodes: Its nodes, in order.
        outputs: Where its outputs are.
    """

    inputs: list[_Place]
    nodes: list[onnx.NodeProto]
    outputs: list[_Place]


class OptimisedNetwork:
    """An optimised network, from which segments are cut.

    Attributes:
        initializers: The tensors that weights are read into, by name, without their elements.
    """

    def __init__(self, optimised: onnx.ModelProto, program: OnnxProgram, graph: Graph) -> None:
        """Finds the values of a graph in an optimised network.

        Args:
            optimised: What the optimiser has written.
            program: What it was given.
            graph: The graph of it.
        """
        self._model = optimised
        self._graph = graph
        self._maker: dict[str, onnx.NodeProto] = {
            name: node for node in optimised.graph.node for name in node.output if name
        }
        self.initializers = {tensor.name: tensor for tensor in optimised.graph.initializer}
        self._order = {id(node): index for index, node in enumerate(optimised.graph.node)}
        self._places = self._find(program)

    def can_cut(self, index: int) -> bool:
        """Whether both sides of a cut can be cut out."""
        return all(self._pieces(side) is not None for side in (self._graph.head(index), self._graph.tail(index)))

    def segment(self, segment: Segment) -> onnx.ModelProto | None:
        """A segment as a model of its own, for any batch size; None when it cannot be cut out.

        Its inputs and outputs are in the order of the segment's; its weights are named like those of the network, and
        empty.
        """
        pieces = self._pieces(segment)
        return None if pieces is None else self._written(segment, pieces)

    def _pieces(self, segment: Segment) -> _Pieces | None:
        """What a segment is made of; None when it cannot be cut out."""
        inputs = [self._places[value] for value in segment.inputs if value in self._places]
        outputs = [self._places[value] for value in segment.outputs if value in self._places]
        if len(inputs) < len(segment.inputs) or len(outputs) < len(segment.outputs):
            return None
        for value, place in zip(segment.inputs, inputs, strict=True):
            if place.blocked and self._graph.spec(value).shape[1] % _CHANNEL_STEP:
                return None
        known = {name for place in inputs for name in place if name}
        nodes = self._needed([place.plain or place.blocked for place in outputs], known)
        return None if nodes is None else _Pieces(inputs, nodes, outputs)

    def _needed(self, names: Iterable[str], known: Collection[str]) -> list[onnx.NodeProto] | None:
        """The nodes that compute tensors from known ones, in order; None when known ones do not suffice."""
        pending, found = list(names), {}
        while pending:
            name = pending.pop()
            if not name or name in known or name in self.initializers:
                continue
            node = self._maker.get(name)
            if node is None:
                return None
            if id(node) not in found:
                found[id(node)] = node
                pending.extend(captured(node))
        return sorted(found.values(), key=lambda node: self._order[id(node)])

    def _written(self, segment: Segment, pieces: _Pieces) -> onnx.ModelProto:
        model = onnx.ModelProto(ir_version=self._model.ir_version, producer_name=self._model.producer_name)
        model.opset_import.extend(self._model.opset_import)
        model.functions.extend(self._model.functions)
        graph = model.graph
        graph.name = "segment"
        taken = {name for node in pieces.nodes for name in captured(node)}
        taken |= {place.plain or place.blocked for place in pieces.outputs}
        for value, place in zip(segment.inputs, pieces.inputs, strict=True):
            graph.input.append(value_info(place.crossing, self._graph.spec(value)))
            if place.blocked in taken:
                graph.node.append(_node("ReorderInput", place.crossing, place.blocked))
        graph.node.extend(pieces.nodes)
        for value, place in zip(segment.outputs, pieces.outputs, strict=True):
            graph.output.append(value_info(place.crossing, self._graph.spec(value)))
            if not place.plain:
                node = _node("ReorderOutput", place.blocked, place.crossing)
                node.attribute.append(helper.make_attribute("channels", self._graph.spec(value).shape[1]))
                graph.node.append(node)
        graph.initializer.extend(tensor for name, tensor in self.initializers.items() if name in taken)
        return model

    def _find(self, program: OnnxProgram) -> dict[Value, _Place]:
        """Where each value is."""
        values = {name: value for value, name in program.names.items()}
        plain = {info.name for info in self._model.graph.input} | set(self._maker)
        chains = _Chains(program.model)
        blocked: dict[str, str] = {}
        for node in self._blocked_nodes():
            if (original := self._original(node, values, chains)) is not None:
                blocked[original] = node.output[0]
        return {
            value: _Place(name if name in plain else "", blocked.get(name, ""))
            for name, value in values.items()
            if name in plain or name in blocked
        }

    def _blocked_nodes(self) -> Iterator[onnx.NodeProto]:
        """The nodes whose outputs are in blocks: those made for it, and elementwise ones that read such tensors."""
        tensors: set[str] = set()
        for node in self._model.graph.node:
            made_for_it = node.domain == _NCHWC and node.op_type != "ReorderOutput"
            if made_for_it or (node.domain != _NCHWC and not tensors.isdisjoint(node.input)):
                tensors.update(node.output)
                yield node

    def _original(self, node: onnx.NodeProto, values: Mapping[str, Value], chains: _Chains) -> str | None:
        """The tensor that the output of a node holds in blocks; None when the network had none such."""
        name = node.name.partition(_SUFFIX)[0] if node.domain == _NCHWC else node.name
        if name not in values:
            return None
        if node.domain == _NCHWC and node.op_type == "Conv":
            if len(node.input) > _SUM_INPUT and node.input[_SUM_INPUT]:
                name = chains.after(name, "Add")
            if any(attribute.name == "activation" for attribute in node.attribute):
                name = chains.after_activation(name)
        return name if name in values else None


class _Chains:
    """Follows tensors that have one reader, in the network as it was before."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        self._kinds: dict[str, str] = {}
        for node in model.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
            for name in node.output:
                self._kinds[name] = node.op_type

    def after(self, name: str, kind: str) -> str:
        """The tensor that the one reader of a tensor, an operator of a kind, makes of it; empty without it."""
        readers = self._readers.get(name, [])
        return readers[0].output[0] if len(readers) == 1 and readers[0].op_type == kind else ""

    def after_activation(self, name: str) -> str:
        """The same for an activation; the tensor itself when it is the output of one."""
        if self._kinds.get(name) in _ACTIVATIONS:
            return name
        return next((after for kind in sorted(_ACTIVATIONS) if (after := self.after(name, kind))), "")


_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu", "HardSigmoid"})
"""What ONNX Runtime fuses into convolutions."""


def _node(kind: str, source: str, name: str) -> onnx.NodeProto:
    return helper.make_node(kind, [source], [name], name, domain=_NCHWC)
