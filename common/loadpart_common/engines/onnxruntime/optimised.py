"""A network as ONNX Runtime optimises it for this machine, and where its values are in there.

The optimiser fuses operators, so that some values are gone, and keeps images in blocks of channels (NCHWc, Georganas
et al., SC 2018, "Anatomy of high-performance deep learning convolutions on SIMD architectures"). What a blocked tensor
holds is read off the names that the optimiser gives: nodes that it makes are named after the tensor that they replace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from onnx import helper

from loadpart_common.formats.onnx.program import captured
from loadpart_common.tensors import BATCH

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from loadpart_common.formats.onnx.program import OnnxProgram
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
        return all(self.segment(side) is not None for side in (self._graph.head(index), self._graph.tail(index)))

    def segment(self, segment: Segment) -> onnx.ModelProto | None:
        """A segment as a model of its own, for any batch size; None when it cannot be cut out.

        Its inputs and outputs are named `input0`, `input1`, ... and `output0`, ...; its weights are named like those of
        the network, and empty.
        """
        known: dict[str, str] = {}
        first: list[onnx.NodeProto] = []
        for number, value in enumerate(segment.inputs):
            place = self._places.get(value)
            if place is None:
                return None
            name = f"input{number}"
            known[place.plain] = name
            if place.blocked:
                if self._graph.spec(value).shape[1] % _CHANNEL_STEP:
                    return None
                known[place.blocked] = f"{name}.blocked"
                first.append(_node("ReorderInput", name, f"{name}.blocked"))
        known.pop("", None)
        wanted = [self._places.get(value) for value in segment.outputs]
        if any(place is None for place in wanted):
            return None
        nodes = self._needed([place.plain or place.blocked for place in wanted if place is not None], known)
        if nodes is None:
            return None
        return self._written(segment, first, nodes, known, [place for place in wanted if place is not None])

    def _needed(self, names: Iterable[str], known: Mapping[str, str]) -> list[onnx.NodeProto] | None:
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

    def _written(
        self,
        segment: Segment,
        first: Sequence[onnx.NodeProto],
        nodes: Sequence[onnx.NodeProto],
        known: Mapping[str, str],
        wanted: Sequence[_Place],
    ) -> onnx.ModelProto:
        model = onnx.ModelProto(ir_version=self._model.ir_version, producer_name=self._model.producer_name)
        model.opset_import.extend(self._model.opset_import)
        model.functions.extend(self._model.functions)
        graph = model.graph
        graph.name = "segment"
        taken = {name for node in nodes for name in captured(node)}
        taken |= {place.plain or place.blocked for place in wanted}
        blocked = {known_as for name, known_as in known.items() if name in taken}
        graph.node.extend(node for node in first if node.output[0] in blocked)
        for node in nodes:
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.input[:] = [known.get(name, name) for name in node.input]
        graph.initializer.extend(tensor for name, tensor in self.initializers.items() if name in taken)
        for number, value in enumerate(segment.inputs):
            graph.input.append(self._info(f"input{number}", value))
        for number, (value, place) in enumerate(zip(segment.outputs, wanted, strict=True)):
            source, name = place.plain or place.blocked, f"output{number}"
            if place.plain:
                graph.node.append(helper.make_node("Identity", [known.get(source, source)], [name], name))
            else:
                node = _node("ReorderOutput", known.get(source, source), name)
                node.attribute.append(helper.make_attribute("channels", self._graph.spec(value).shape[1]))
                graph.node.append(node)
            graph.output.append(self._info(name, value))
        return model

    def _info(self, name: str, value: Value) -> onnx.ValueInfoProto:
        spec = self._graph.spec(value)
        sizes = ["N" if size == BATCH else size for size in spec.shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), sizes)

    def _find(self, program: OnnxProgram) -> dict[Value, _Place]:
        """Where each value is."""
        values = {name: value for value, name in program.names.items()}
        plain = {info.name for info in self._model.graph.input} | set(self._maker)
        chains = _Chains(program.model)
        blocked: dict[str, str] = {}
        for node in self._model.graph.node:
            if (original := self._original(node, values, chains)) is not None:
                blocked[original] = node.output[0]
        return {
            value: _Place(name if name in plain else "", blocked.get(name, ""))
            for name, value in values.items()
            if name in plain or name in blocked
        }

    def _original(self, node: onnx.NodeProto, values: Mapping[str, Value], chains: _Chains) -> str | None:
        """The tensor that the output of a node holds in blocks; None for a node whose output is plain."""
        output = node.output[0] if node.output else ""
        if output in values:
            return None
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
