"""Translates a MindIR program into ONNX, for engines that take no MindIR; needs no MindSpore.

Weights are not copied: the ONNX model refers to their places in the MindIR file. Operators are translated one by one;
`operators` has a function for each kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from loadpart.mindir.v1 import mindir_pb2
from loadpart_common.errors import ModelError
from loadpart_common.formats.mindir.dtypes import DTYPE_BY_NUMBER
from loadpart_common.formats.mindir.nodes import integers, reporting_damage, shapes, title
from loadpart_common.formats.mindir.program import is_packed
from loadpart_common.formats.onnx_program import OPSET, OnnxProgram, leave_in_file, value_info
from loadpart_common.graph import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, TypeAlias

    from loadpart_common.formats.mindir.file import ModelFile
    from loadpart_common.formats.mindir.program import Program
    from loadpart_common.graph import Graph
    from loadpart_common.tensors import Array

    Translation: TypeAlias = Callable[["Translator", mindir_pb2.Node, Sequence[str]], None]

_IR_VERSION = 9


class Translator:
    """Writes the nodes of a program as ONNX; the functions in `operators` use it.

    Attributes:
        nodes: The ONNX nodes so far.
    """

    def __init__(
        self, file: ModelFile, program: Program, graph: Graph, translations: Mapping[str, Translation]
    ) -> None:
        """Makes a translator.

        Args:
            file: Where the weights are.
            program: The nodes.
            graph: The network.
            translations: The function for each kind of operator.
        """
        self._file = file
        self._program = program
        self._graph = graph
        self._translations = translations
        self._names: dict[Value, str] = {}
        self._constants: dict[str, str] = {}  # name in the program: tensor, for what is made of weights alone
        self._initializers: dict[str, TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []

    def translate(self) -> OnnxProgram:
        """The whole program.

        Raises:
            ModelError: An operator has no translation; the message names its kind and the node.
        """
        with reporting_damage():
            return self._translate()

    def _translate(self) -> OnnxProgram:
        for index, spec in enumerate(self._graph.inputs):
            self._names[Value(-1, index)] = f"input{index}.{spec.name}"
        for index, layer in enumerate(self._graph.layers):
            for element in range(len(layer.outputs)):
                self._names[Value(index, element)] = f"layer{index}.{element}"
        for index, node in enumerate(self._program.layer_nodes):
            if index in self._program.effects:
                self._check_overwriting(index)
            self._emit(node, [self._names[Value(index, e)] for e in range(len(self._graph.layers[index].outputs))])
        inputs = [Value(-1, index) for index in range(len(self._graph.inputs))]
        outputs = list(dict.fromkeys(self._graph.outputs))
        graph = helper.make_graph(
            self.nodes,
            "network",
            [value_info(self._names[value], self._graph.spec(value)) for value in inputs],
            [value_info(self._names[value], self._graph.spec(value)) for value in outputs],
            list(self._initializers.values()),
        )
        opset = [helper.make_opsetid("", OPSET)]
        onnx_model = helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION, producer_name="loadpart")
        return OnnxProgram(onnx_model, dict(self._names), self._file.path.parent)

    # What the functions in `operators` use.

    def add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> None:
        """Adds an ONNX node; it is named after its first output."""
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), outputs[0], **attributes))

    def constant(self, array: Array) -> str:
        """A tensor with given elements."""
        name = f"constant{len(self._initializers)}"
        self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def tensor(self, name: str) -> str:
        """The tensor that a name of the program stands for."""
        tree = self._program.tree(name)
        if isinstance(tree, Value):
            return self._names[tree]
        if is_packed(tree):
            first = next(iter(tree))  # the one tensor of an operator that gives others beside it
            if isinstance(first, Value):
                return self._names[first]
            raise ModelError(f"{name!r} stands for a tuple where a tensor is expected")
        return self._made_of_weights(name)

    def tensors(self, name: str) -> list[str]:
        """The tensors that a tuple packs."""
        return [self.tensor(member) for member in self._program.members(name)]

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """The numbers of a constant, be it one number, a tuple or a tensor; None when the name is no constant."""
        if self._program.kind(name) != "Constant":
            return None
        (attribute,) = self._program.nodes[name].attribute
        if attribute.HasField("f"):
            return (attribute.f,)
        if attribute.tensors:
            return tuple(_elements(attribute.tensors[0]).ravel().tolist())
        return tuple(integers(attribute))

    def attributes(self, node: mindir_pb2.Node, *keys: str) -> tuple[int, ...]:
        """The integers of the first attribute of a node's primitive among `keys`."""
        return self._program.attributes(node.name, *keys)

    def text(self, node: mindir_pb2.Node, key: str) -> str:
        """The text of an attribute of a node's primitive, in lower case; empty when it has none."""
        return self._program.text(node.name, key).lower()

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor for one item of the batch."""
        return self._program.shape(next(self._program.members(name))) or ()

    def dtype(self, node: mindir_pb2.Node) -> str:
        """Type of the elements of a node's first output."""
        return DTYPE_BY_NUMBER[next(iter(shapes(node))).data_type]

    def output_shape(self, node: mindir_pb2.Node) -> tuple[int, ...]:
        """Shape of a node's first output for one item of the batch."""
        return tuple(next(iter(shapes(node))).dims)

    def refuse(self, node: mindir_pb2.Node, why: str) -> ModelError:
        """The error for a node that has no translation."""
        return ModelError(f"node {title(node)} ({self._program.kind(node.name)}) cannot be written as ONNX: {why}")

    def _emit(self, node: mindir_pb2.Node, outputs: list[str]) -> None:
        kind = self._program.kind(node.name)
        translate_node = self._translations.get(kind)
        if translate_node is None:
            raise ModelError(f"operator {kind} has no translation to ONNX (node {title(node)})")
        translate_node(self, node, outputs)

    def _made_of_weights(self, name: str) -> str:
        """A tensor that does not depend on the network's inputs."""
        if name in self._constants:
            return self._constants[name]
        if name in self._program.weights:
            tensor = self._weight(name)
        elif (kind := self._program.kind(name)) == "Constant":
            tensor = self._constant_node(self._program.nodes[name])
        elif kind in {"Load", "Depend"}:
            tensor = self._made_of_weights(self._program.nodes[name].input[0])
        else:
            tensor = f"weights{len(self._constants)}"
            self._emit(self._program.nodes[name], [tensor])
        self._constants[name] = tensor
        return tensor

    def _weight(self, name: str) -> str:
        """A weight, by its place in the file."""
        place = self._file.weights[name]
        tensor = TensorProto(name=f"weight{len(self._initializers)}", dims=place.shape)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(np.dtype(place.dtype))
        leave_in_file(tensor, self._file.path.name, place.offset, place.nbytes)
        self._initializers[tensor.name] = tensor
        return tensor.name

    def _constant_node(self, node: mindir_pb2.Node) -> str:
        (attribute,) = node.attribute
        if attribute.tensors:
            return self.constant(_elements(attribute.tensors[0]))
        if attribute.HasField("f"):
            return self.constant(np.float32(attribute.f).reshape(()))
        if attribute.type == mindir_pb2.ATTRIBUTE_TYPE_INT64:
            return self.constant(np.float32(attribute.i).reshape(()))
        raise ModelError(f"node {title(node)} is a constant that is no tensor")

    def _check_overwriting(self, index: int) -> None:
        """Refuses a layer that changes a tensor in place which others read after it: ONNX has values only.

        Raises:
            ModelError: Some other layer reads it.
        """
        layers, first = self._graph.layers, self._graph.layers[index].inputs[0]
        is_read = any(first in layer.inputs for layer in layers[index + 1 :]) or first in self._graph.outputs
        if is_read:
            raise self.refuse(self._program.layer_nodes[index], "what it changes in place is read again after it")


def _elements(tensor: mindir_pb2.Tensor) -> Array:
    """The elements of a tensor that a file holds as a constant."""
    return np.frombuffer(tensor.raw_data, DTYPE_BY_NUMBER[tensor.data_type]).reshape(tuple(tensor.dims))
