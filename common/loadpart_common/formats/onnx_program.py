"""A network as an ONNX model, with what the graph calls its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from loadpart_common.tensors import BATCH

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from loadpart_common.graph import Value
    from loadpart_common.tensors import TensorSpec

OPSET = 17
"""Version of the operators that translators write: old enough for every engine of the last years."""


@dataclass(frozen=True)
class OnnxProgram:
    """A network as an ONNX model.

    Attributes:
        model: The model; its batch dimension is open where the network takes any batch size.
        names: The tensor that each value of the graph is.
        folder: Where files with weights lie that the model names.
    """

    model: onnx.ModelProto
    names: Mapping[Value, str]
    folder: Path


def value_info(name: str, spec: TensorSpec) -> onnx.ValueInfoProto:
    """A tensor as an input or an output of a model."""
    sizes: list[int | str] = ["N" if size == BATCH else size for size in spec.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), sizes)


def leave_in_file(tensor: onnx.TensorProto, file_name: str, offset: int, nbytes: int) -> None:
    """Has a weight's elements be read from their place in a file."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": file_name, "offset": offset, "length": nbytes}.items():
        tensor.external_data.add(key=key, value=str(value))


def place_in_file(tensor: onnx.TensorProto) -> dict[str, str] | None:
    """What `leave_in_file` has noted, by key; None for a weight that is in the model."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    return {entry.key: entry.value for entry in tensor.external_data}


def files_with_weights(model: onnx.ModelProto) -> list[str]:
    """Names of the files that `leave_in_file` has named."""
    places = (place_in_file(tensor) for tensor in model.graph.initializer)
    return sorted({place["location"] for place in places if place is not None})


def captured(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads, those that its branches and loop bodies take from around it among them."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            made = {name for inner in graph.node for name in inner.output}
            made |= {tensor.name for tensor in graph.initializer} | {info.name for info in graph.input}
            names += [name for inner in graph.node for name in captured(inner) if name not in made]
            names += [info.name for info in graph.output if info.name not in made]
    return names
