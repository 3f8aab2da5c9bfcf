"""Random networks for the calibration: the operators of convolutional networks at many sizes, among other operators.

An operator's time depends on those before it, which may leave its inputs in the cache. So whole networks are drawn, in
four styles from the literature. Numbers of channels avoid powers of two and the other widths of published networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from mindspore import nn

from loadpart_common.engines.mindspore.zoo.layers import (
    GlobalAveragePool,
    Residual,
    convolution,
    convolution_norm,
    separable,
)
from loadpart_common.engines.mindspore.zoo.squeezenet import Fire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WIDTHS = (24, 40, 56, 72, 104, 136, 168, 208, 280, 328, 392, 456, 584, 680, 840, 984, 1160, 1400, 1720, 2008)
_IMAGE_SIZES = (123, 159, 187, 213, 235, 261, 309)
_MOST_FLOPS = 1.2e9
"""Limit for one convolution: larger ones take long to measure and do not improve the model."""
_MOST_WEIGHTS = 40e6


class _Draw:
    """Draws the layers of one network, and tracks the size of its feature maps."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([1, seed])
        self.image_size = int(self.rng.choice(_IMAGE_SIZES))
        self.size = self.image_size
        self.channels = 3
        self.cells: list[nn.Cell] = []

    def width(self, least: int, most: int) -> int:
        """Draws a number of channels."""
        return int(self.rng.choice([width for width in _WIDTHS if least <= width <= most]))

    def affordable(self, width: int, kernel: int) -> bool:
        """Whether a convolution to `width` channels stays within `_MOST_FLOPS`."""
        return 2 * self.channels * width * kernel**2 * self.size**2 <= _MOST_FLOPS

    def stem(self, make: Callable[..., list[nn.Cell]]) -> None:
        """Adds the first convolution: few input channels, a large kernel, a stride."""
        kernel, stride = [(3, 1), (3, 2), (5, 2), (7, 2), (9, 3), (11, 4)][self.rng.integers(6)]
        width = self.width(24, 104)
        self.cells += [*make(3, width, kernel, stride=stride, padding=kernel // 2), nn.ReLU()]
        self.channels, self.size = width, (self.size + 2 * (kernel // 2) - kernel) // stride + 1

    def pool(self) -> None:
        """Adds max pooling that halves the size."""
        kernel = int(self.rng.integers(2, 4))
        self.cells.append(nn.MaxPool2d(kernel, 2))
        self.size = (self.size - kernel) // 2 + 1

    def classify(self) -> None:
        """Adds the classifier: a mean and one dense layer, or dense layers on the whole feature maps."""
        if self.rng.random() < 0.6:
            self.cells += [GlobalAveragePool(), nn.Dense(self.channels, self.width(400, 2008))]
            return
        features = self.channels * self.size**2
        first = self.width(136, 2008)
        while features * first > _MOST_WEIGHTS:
            first //= 2
        second = self.width(400, 2008)
        self.cells += [nn.Flatten(), nn.Dense(features, first), nn.ReLU(), nn.Dense(first, second)]


def _convolve(channels: int, width: int, kernel: int, *, stride: int = 1, padding: int = 0) -> list[nn.Cell]:
    return [convolution(channels, width, kernel, stride=stride, padding=padding)]


def _plain(draw: _Draw) -> None:
    """Convolutions with biases, one after another."""
    draw.stem(_convolve)
    for width in _widths(draw, 6):
        kernel = int(draw.rng.choice([3, 3, 3, 5, 1]))
        if draw.affordable(width, kernel):
            draw.cells += [*_convolve(draw.channels, width, kernel, padding=kernel // 2), nn.ReLU()]
            draw.channels = width


def _residual(draw: _Draw) -> None:
    """Sums of a body and a shortcut."""
    draw.stem(convolution_norm)
    if draw.size > 60:
        draw.cells += [nn.Pad(((0, 0), (0, 0), (1, 1), (1, 1))), nn.MaxPool2d(3, 2)]
        draw.size = (draw.size + 2 - 3) // 2 + 1
    for width in _widths(draw, 6):
        middle = width if draw.rng.random() < 0.5 else max(width // 4, 16)
        stride = int(draw.rng.integers(1, 3)) if draw.size > 10 else 1
        if not draw.affordable(middle, 3):
            continue
        body = [
            *convolution_norm(draw.channels, middle, 1 if middle < width else 3, padding=int(middle == width)),
            nn.ReLU(),
            *convolution_norm(middle, middle, 3, stride=stride, padding=1),
        ]
        if middle < width:
            body += [nn.ReLU(), *convolution_norm(middle, width, 1)]
        projection = convolution_norm(draw.channels, width, 1, stride=stride)
        draw.cells += [Residual(body, projection if stride > 1 or draw.channels != width else []), nn.ReLU()]
        draw.channels, draw.size = width, (draw.size - 1) // stride + 1


def _separable(draw: _Draw) -> None:
    """Depthwise and then pointwise convolutions."""
    draw.stem(convolution_norm)
    for width in _widths(draw, 8):
        if draw.affordable(width, 1):
            draw.cells += [*separable(draw.channels, width), nn.ReLU()]
            draw.channels = width


def _fire(draw: _Draw) -> None:
    """Branches that are concatenated."""
    draw.stem(_convolve)
    for width in _widths(draw, 6):
        half = width // 2
        if draw.affordable(half, 1):
            draw.cells.append(Fire(draw.channels, max(half // int(draw.rng.integers(2, 6)), 8), half))
            draw.channels = 2 * half


def _widths(draw: _Draw, number: int) -> Iterator[int]:
    """Widths that grow along the network, with pooling in between."""
    for step in range(number):
        if draw.size > 12 and draw.rng.random() < 0.5:
            draw.pool()
        least = 24 << (step // 2)
        yield draw.width(least, min(max(8 * least, 104), 2008))


_STYLES = (_plain, _residual, _separable, _fire)


def synthetic(seed: int) -> tuple[nn.Cell, int]:
    """A random network for normalised float32 images of shape `N,3,S,S`; returned with S."""
    draw = _Draw(seed)
    _STYLES[seed % len(_STYLES)](draw)
    while draw.size > 24:
        draw.pool()
    draw.classify()
    return nn.SequentialCell(*draw.cells), draw.image_size
