"""The family of each of ONNX's operators, and their floating-point operations.

A multiply-add counts as two operations; elementwise operators count one for each element of their output; operators
that only move elements count none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from loadpart_common.families import Family

if TYPE_CHECKING:
    from collections.abc import Sequence

_FAMILIES = {
    "Conv": Family.CONVOLUTION,
    "QLinearConv": Family.CONVOLUTION,
    "ConvInteger": Family.CONVOLUTION,
    "Gemm": Family.MATRIX_PRODUCT,
    "MatMul": Family.MATRIX_PRODUCT,
    "MatMulInteger": Family.MATRIX_PRODUCT,
    "QLinearMatMul": Family.MATRIX_PRODUCT,
    "MaxPool": Family.POOLING,
    "AveragePool": Family.POOLING,
    "BatchNormalization": Family.NORMALISATION,
    "Add": Family.ADDITION,
    "Sum": Family.ADDITION,
    "Sub": Family.SUBTRACTION,
    "Mul": Family.MULTIPLICATION,
    "Div": Family.DIVISION,
    "Relu": Family.RELU,
    "Clip": Family.RELU,
    "ReduceMean": Family.REDUCTION,
    "ReduceSum": Family.REDUCTION,
    "ReduceMax": Family.REDUCTION,
    "GlobalAveragePool": Family.REDUCTION,
    "GlobalMaxPool": Family.REDUCTION,
    "Concat": Family.CONCATENATION,
    "Reshape": Family.RESHAPE,
    "Flatten": Family.RESHAPE,
    "Squeeze": Family.RESHAPE,
    "Unsqueeze": Family.RESHAPE,
    "Identity": Family.RESHAPE,
    "Transpose": Family.TRANSPOSITION,
    "Pad": Family.PADDING,
    "Cast": Family.CAST,
    "QuantizeLinear": Family.CAST,
    "DequantizeLinear": Family.CAST,
}

_MOVES = frozenset(
    {
        Family.CONCATENATION, Family.RESHAPE, Family.TRANSPOSITION, Family.PADDING, Family.CAST,
    }
)  # fmt: skip
_MOVING_KINDS = frozenset({"Slice", "Gather", "Split", "Shape", "Expand", "Tile", "Resize", "DepthToSpace"})

Shape = tuple[int, ...]


def family_of(kind: str, *, reads_weights: bool) -> Family:
    """The family of an operator; `OTHER` for one that was never measured.

    Args:
        kind: The operator.
        reads_weights: Whether one of its operands is in the file.
    """
    if kind == "Add" and reads_weights:
        return Family.BIAS
    return _FAMILIES.get(kind, Family.OTHER)


def flops(kind: str, inputs: Sequence[Shape], output: Shape, kernel: Shape) -> int:
    """Number of operations of one run of an operator.

    Args:
        kind: Operator kind, such as `Conv`.
        inputs: Shapes of its inputs, weights among them; empty where unknown.
        output: Shape of its first output.
        kernel: Shape of its window, for operators with a sliding window.
    """
    elements, family = math.prod(output), _FAMILIES.get(kind, Family.OTHER)
    if family in _MOVES or kind in _MOVING_KINDS:
        return 0
    if family is Family.CONVOLUTION:
        weight = next((shape for shape in inputs[1:] if len(shape) > 2), ())
        return 2 * elements * math.prod(weight[1:]) if weight else elements
    if family is Family.MATRIX_PRODUCT and inputs and inputs[0]:
        return 2 * elements * inputs[0][-1]
    if family is Family.POOLING:
        return elements * math.prod(kernel)
    if family is Family.REDUCTION and inputs:
        return math.prod(inputs[0])
    return 2 * elements if family is Family.NORMALISATION else elements
