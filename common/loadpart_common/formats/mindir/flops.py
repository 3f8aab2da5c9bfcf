"""Floating-point operations of MindIR's operators.

A multiply-add counts as two operations, as in the literature on inference cost (for example Canziani et al. 2016 count
the same way once doubled). Elementwise operators count one an element of what they give; operators that only move
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
    """Operations of one run of an operator.

    Args:
        kind: Operator kind, such as `Conv2D`.
        inputs: Shapes of its tensor inputs, weights among them.
        output: Shape of its first output.
        kernel: Its window, for operators that slide one.
    """
    elements = math.prod(output)
    if kind in _MOVES:
        return 0
    if kind.startswith(("Conv", "DepthwiseConv")) and len(inputs) > 1:
        return 2 * elements * math.prod(inputs[1][1:])  # of the weight: input channels a group, kernel height and width
    if kind.startswith(("MatMul", "BatchMatMul", "Dense", "LinearExt")) and inputs:
        # Of m x k times k x n, with any transposition: k = sqrt(m k * k n / (m n)).
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
