"""Random networks as ONNX files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart_common.engines.synthetic.drawing import (
    Activation,
    Branches,
    Convolution,
    Dense,
    Flattening,
    GlobalMean,
    MaxPool,
    Normalisation,
    Padding,
    Sum,
    draw,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loadpart_common.engines.synthetic.drawing import Piece
    from loadpart_common.tensors import Array

_OPSET, _IR = 18, 9
_MOST = 6.0


def write_onnx(seed: int, folder: Path) -> Path:
    """Writes the random network of a seed; its weights mean nothing.

    It takes uint8 images, as the zoo's networks do.

    Returns:
        The file.
    """
    import onnx
    from onnx import TensorProto, helper

    drawn = draw(seed)
    writer = _Writer(np.random.default_rng(seed))
    scores = writer.add(drawn.pieces, writer.images("image"))
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", drawn.size, drawn.size, 3])
    output = helper.make_tensor_value_info(scores, TensorProto.FLOAT, None)
    graph = helper.make_graph(writer.nodes, f"random-{seed}", [image], [output], writer.weights)
    model = helper.make_model(graph, ir_version=_IR, opset_imports=[helper.make_opsetid("", _OPSET)])
    path = folder / f"random-{seed}.onnx"
    onnx.save(model, path)
    return path


class _Writer:
    """Writes nodes and weights, and gives the tensors names."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._rng = rng

    def images(self, name: str) -> str:
        """Images as float32 channels, normalised as the zoo's networks do it."""
        centred = self._node("Sub", self._node("Cast", name, to=1), self._weight(self._rng.random(3, np.float32)))
        scaled = self._node("Div", centred, self._weight(np.full(3, 255, np.float32)))
        return self._node("Transpose", scaled, perm=[0, 3, 1, 2])

    def add(self, pieces: Sequence[Piece], tensor: str) -> str:
        """Writes pieces that take a tensor; returns the name of what comes out."""
        for piece in pieces:
            tensor = self._add(piece, tensor)
        return tensor

    def _add(self, piece: Piece, tensor: str) -> str:
        match piece:
            case Convolution():
                return self._convolution(piece, tensor)
            case Normalisation(channels):
                statistics = [self._rng.random(channels, np.float32) + np.float32(0.5) for _ in range(4)]
                return self._node("BatchNormalization", tensor, *map(self._weight, statistics))
            case Activation(bounded):
                bounds = [self._weight(np.array(bound, np.float32)) for bound in (0.0, _MOST)]
                return self._node("Clip", tensor, *bounds) if bounded else self._node("Relu", tensor)
            case Padding():
                return self._node("Pad", tensor, self._weight(np.array([0, 0, 1, 1] * 2)))
            case MaxPool(kernel):
                return self._node("MaxPool", tensor, kernel_shape=[kernel] * 2, strides=[2, 2])
            case GlobalMean():
                return self._node("ReduceMean", tensor, self._weight(np.array([2, 3])), keepdims=0)
            case Flattening():
                return self._node("Flatten", tensor)
            case Dense(inputs, outputs):
                weights = self._weight(self._random(outputs, inputs, fan_in=inputs))
                return self._node("Gemm", tensor, weights, self._weight(np.zeros(outputs, np.float32)), transB=1)
            case Sum(body, projection):
                return self._node("Add", self.add(body, tensor), self.add(projection, tensor))
            case Branches(arms):
                return self._node("Concat", *(self.add(arm, tensor) for arm in arms), axis=1)

    def _convolution(self, piece: Convolution, tensor: str) -> str:
        shape = (piece.channels_out, piece.channels_in // piece.group, piece.kernel, piece.kernel)
        weights = self._weight(self._random(*shape, fan_in=shape[1] * piece.kernel**2))
        convolved = self._node(
            "Conv", tensor, weights, kernel_shape=[piece.kernel] * 2, strides=[piece.stride] * 2,
            pads=[piece.padding] * 4, group=piece.group,
        )  # fmt: skip
        if not piece.bias:
            return convolved
        return self._node("Add", convolved, self._weight(np.zeros((piece.channels_out, 1, 1), np.float32)))

    def _random(self, *shape: int, fan_in: int) -> Array:
        """Weights that keep the size of numbers, as He et al. 2015 draw them."""
        return self._rng.standard_normal(shape, np.float32) * np.float32(np.sqrt(2 / fan_in))

    def _weight(self, array: Array) -> str:
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(array, f"weight-{len(self.weights)}"))
        name: str = self.weights[-1].name
        return name

    def _node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind.lower()}-{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name
