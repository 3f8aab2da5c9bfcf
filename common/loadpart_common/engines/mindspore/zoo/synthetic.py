"""Random networks as MindSpore cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mindspore import nn, ops

from loadpart_common.engines.mindspore.zoo.layers import GlobalAveragePool, Residual
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
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadpart_common.engines.synthetic.drawing import Piece


class _Concatenated(nn.Cell):  # type: ignore[misc]  # MindSpore has no types
    """Cells side by side, whose results are concatenated along the channels."""

    def __init__(self, arms: list[nn.Cell]) -> None:
        super().__init__()
        self.arms = nn.CellList(arms)

    def construct(self, x):  # type: ignore[no-untyped-def]  # compiled by MindSpore, not by Python
        results = ()
        for arm in self.arms:
            results += (arm(x),)  # type: ignore[assignment]  # MindSpore knows no lists
        return ops.concat(results, axis=1)


def cell_of(pieces: Sequence[Piece]) -> nn.Cell:
    """The pieces of a network as a cell."""
    return nn.SequentialCell(*map(_cell, pieces))


def _cell(piece: Piece) -> nn.Cell:
    match piece:
        case Convolution(channels_in, channels_out, kernel, stride, padding, group, bias):
            return nn.Conv2d(
                channels_in, channels_out, kernel, stride=stride, pad_mode="pad", padding=padding, group=group,
                has_bias=bias,
            )  # fmt: skip
        case Normalisation(channels):
            return nn.BatchNorm2d(channels)
        case Activation(bounded):
            return nn.ReLU6() if bounded else nn.ReLU()
        case Padding():
            return nn.Pad(((0, 0), (0, 0), (1, 1), (1, 1)))
        case MaxPool(kernel):
            return nn.MaxPool2d(kernel, 2)
        case GlobalMean():
            return GlobalAveragePool()
        case Flattening():
            return nn.Flatten()
        case Dense(inputs, outputs):
            return nn.Dense(inputs, outputs)
        case Sum(body, projection):
            return Residual([_cell(each) for each in body], [_cell(each) for each in projection])
        case Branches(arms):
            return _Concatenated([cell_of(arm) for arm in arms])
