"""Floating-point operations of MindIR's operators.

A multiply-add counts as two operations; literature that counts multiply-adds (for example Canziani et al. 2016) gives
half as many. Elementwise operators count one operation for each element of their output; operators that only move
elements count none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Shape = tuple[int, ...]

_MOVES = frozenset(
    {
        "BroadcastTo", "Cast", "Concat", "ExpandDims", "Flatten", "FlattenExt", "Gather", "Reshape", "ReshapeExt",
        "Shape", "Slice", "SliceExt", "Split", "SplitTensor", "Squeeze", "Stack", "StridedSlice", "TensorMove", "Tile",
        "Transpose", "TransposeExt", "Unsqueeze", "UnstackExt", "ExpandDimsView", "TransposeView", "Pad", "PadV3",
    }
)  # fmt: skip

_REDUCES = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "MeanExt", "SumExt", "AdaptiveAvgPool2DExt"})


def flops(kind: str, inputs: Sequence[Shape], output: Shape, kernel: Shape) -> int:
    """Number of operations of one run of an operator.

    Args:
        kind: Operator kind, such as `Conv2D`.
        inputs: Shapes of its tensor inputs, weights among them.
        output: Shape of its first output.
        kernel: Shape of its window, for operators with a sliding window.
    """
    elements = math.prod(output)
    if kind in _MOVES:
        return 0
    if kind.startswith(("Conv", "DepthwiseConv")) and len(inputs) > 1:
        return 2 * elements * math.prod(inputs[1][1:])  # weight: input channels of a group, kernel height and width
    if kind.startswith(("MatMul", "BatchMatMul", "Dense", "LinearExt")) and inputs:
        # A product of m x k and k x n, transposed or not: k = sqrt(m k * k n / (m n)).
        matrices = math.prod(output[:-2]) or 1
        left, right = (math.prod(shape) for shape in inputs[:2])
        right_matrices = matrices if len(inputs[1]) > 2 else 1
        rows_columns = elements // matrices
        inner = math.isqrt((left // matrices) * (right // right_matrices) // max(rows_columns, 1))
        return 2 * elements * inner
    if "Pool" in kind and kernel:
        return elements * math.prod(kernel)
    if kind in _REDUCES and inputs:
        return math.prod(inputs[0])
    if kind.startswith("BatchNorm"):
        return 2 * elements
    return elements
