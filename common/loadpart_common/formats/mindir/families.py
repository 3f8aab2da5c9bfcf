"""The family of each of MindIR's operators."""

from __future__ import annotations

from loadpart_common.families import Family

_BY_NAME = {
    "BatchNorm": Family.NORMALISATION,
    "BiasAdd": Family.BIAS,
    "Add": Family.ADDITION,
    "Sub": Family.SUBTRACTION,
    "Mul": Family.MULTIPLICATION,
    "Div": Family.DIVISION,
    "ReLU": Family.RELU,
    "ReduceMean": Family.REDUCTION,
    "Concat": Family.CONCATENATION,
    "Flatten": Family.RESHAPE,
    "Transpose": Family.TRANSPOSITION,
    "Pad": Family.PADDING,
    "Cast": Family.CAST,
}

_BY_PREFIX = {
    "Conv": Family.CONVOLUTION,
    "MatMul": Family.MATRIX_PRODUCT,
    "BatchMatMul": Family.MATRIX_PRODUCT,
    "Dense": Family.MATRIX_PRODUCT,
    "LinearExt": Family.MATRIX_PRODUCT,
    "MaxPool": Family.POOLING,
    "AvgPool": Family.POOLING,
}
"""Operators whose variants (`Conv2D`, `Conv2DExt`, ...) do the same work."""


def family_of(kind: str) -> Family:
    """The family of an operator, by its name; `OTHER` for one that was never measured."""
    by_prefix = (family for prefix, family in _BY_PREFIX.items() if kind.startswith(prefix))
    return _BY_NAME.get(kind) or next(by_prefix, Family.OTHER)
