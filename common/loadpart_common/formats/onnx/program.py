"""A network as an ONNX model, with what the graph calls its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx

    from loadpart_common.graph import Value

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
