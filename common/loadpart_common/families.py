"""Families of operators, by what their running time depends on.

A format assigns each layer its family; the latency model and the calibration read it. So no operator name of a format
is known outside of that format's folder.
"""

from __future__ import annotations

from enum import StrEnum


class Family(StrEnum):
    """What kind of work a layer is."""

    CONVOLUTION = "convolution"
    MATRIX_PRODUCT = "matrix product"
    POOLING = "pooling"
    NORMALISATION = "normalisation"
    BIAS = "bias"
    ADDITION = "addition"
    SUBTRACTION = "subtraction"
    MULTIPLICATION = "multiplication"
    DIVISION = "division"
    RELU = "relu"
    REDUCTION = "reduction"
    CONCATENATION = "concatenation"
    RESHAPE = "reshape"
    TRANSPOSITION = "transposition"
    PADDING = "padding"
    CAST = "cast"
    OTHER = "other"
    """Everything else; the latency model has one pooled row for it."""
