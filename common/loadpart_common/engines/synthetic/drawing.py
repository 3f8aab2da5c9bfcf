"""Draws random networks: the operators of convolutional networks at many sizes, among other operators.

An operator's time depends on those before it, which may leave its inputs in the cache. So whole networks are drawn, in
five styles from the literature. Numbers of channels avoid powers of two and the other widths of published networks, but
most are multiples of sixteen as those are: engines that keep channels in blocks waste work on any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WIDTHS = (24, 48, 80, 112, 144, 176, 208, 272, 336, 400, 464, 592, 688, 848, 976, 1168, 1424, 1744, 2000)
_IMAGE_SIZES = (123, 159, 187, 213, 235, 261, 309)
_MOST_FLOPS = 1.2e9
"""Limit for one convolution: larger ones take long to measure and do not improve the model."""
_MOST_WEIGHTS = 40e6


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of square kernels; `bias` says whether one is added to each channel after it."""

    channels_in: int
    channels_out: int
    kernel: int
    stride: int = 1
    padding: int = 0
    group: int = 1
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Normalisation:
    """A batch normalisation."""

    channels: int


@dataclass(frozen=True, slots=True)
class Activation:
    """ReLU, or ReLU6 where it is `bounded`."""

    bounded: bool = False


@dataclass(frozen=True, slots=True)
class Padding:
    """One row or column of zeros on each side."""


@dataclass(frozen=True, slots=True)
class MaxPool:
    """Max pooling without padding, with a stride of 2."""

    kernel: int


@dataclass(frozen=True, slots=True)
class GlobalMean:
    """The mean over height and width: `N,C,H,W` to `N,C`."""


@dataclass(frozen=True, slots=True)
class Flattening:
    """`N,C,H,W` to `N,C*H*W`."""


@dataclass(frozen=True, slots=True)
class Dense:
    """A matrix product and a bias."""

    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Sum:
    """A body whose result is added to its input, or to a projection of it."""

    body: tuple[Piece, ...]
    projection: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Branches:
    """Pieces side by side, whose results are concatenated along the channels."""

    arms: tuple[tuple[Piece, ...], ...]


Piece = (
    Convolution
    | Normalisation
    | Activation
    | Padding
    | MaxPool
    | GlobalMean
    | Flattening
    | Dense
    | Sum
    | Branches
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawn:
    """A random network for float32 images of shape `N,3,size,size`."""

    pieces: tuple[Piece, ...]
    size: int


def draw(seed: int) -> Drawn:
    """The random network of a seed."""
    drawing = _Drawing(seed)
    _STYLES[seed % len(_STYLES)](drawing)
    while drawing.size > 24:
        drawing.pool()
    drawing.classify()
    return Drawn(tuple(drawing.pieces), drawing.image_size)


class _Drawing:
    """Draws the pieces of one network, and tracks the size of its feature maps."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([1, seed])
        self.image_size = int(self.rng.choice(_IMAGE_SIZES))
        self.size = self.image_size
        self.channels = 3
        self.pieces: list[Piece] = []

    def width(self, least: int, most: int) -> int:
        """Draws a number of channels."""
        return int(self.rng.choice([width for width in _WIDTHS if least <= width <= most]))

    def affordable(self, width: int, kernel: int) -> bool:
        """Whether a convolution to `width` channels stays within `_MOST_FLOPS`."""
        return 2 * self.channels * width * kernel**2 * self.size**2 <= _MOST_FLOPS

    def stem(self, make: Callable[..., list[Piece]]) -> None:
        """Adds the first convolution: few input channels, a large kernel, a stride."""
        kernel, stride = [(3, 1), (3, 2), (5, 2), (7, 2), (9, 3), (11, 4)][self.rng.integers(6)]
        width = self.width(24, 104)
        self.pieces += [*make(3, width, kernel, stride=stride, padding=kernel // 2), Activation()]
        self.channels, self.size = width, (self.size + 2 * (kernel // 2) - kernel) // stride + 1

    def pool(self) -> None:
        """Adds max pooling that halves the size."""
        kernel = int(self.rng.integers(2, 4))
        self.pieces.append(MaxPool(kernel))
        self.size = (self.size - kernel) // 2 + 1

    def classify(self) -> None:
        """Adds the classifier: a mean and one dense layer, or dense layers on the whole feature maps."""
        if self.rng.random() < 0.6:
            self.pieces += [GlobalMean(), Dense(self.channels, self.width(400, 2008))]
            return
        features = self.channels * self.size**2
        first = self.width(136, 2008)
        while features * first > _MOST_WEIGHTS:
            first //= 2
        second = self.width(400, 2008)
        self.pieces += [Flattening(), Dense(features, first), Activation(), Dense(first, second)]


def _biased(channels: int, width: int, kernel: int, *, stride: int = 1, padding: int = 0) -> list[Piece]:
    return [Convolution(channels, width, kernel, stride, padding, bias=True)]


def _normalised(channels: int, width: int, kernel: int, *, stride: int = 1, padding: int = 0) -> list[Piece]:
    return [Convolution(channels, width, kernel, stride, padding), Normalisation(width)]


def _plain(drawing: _Drawing) -> None:
    """Convolutions with biases, one after another."""
    drawing.stem(_biased)
    for width in _widths(drawing, 6):
        kernel = int(drawing.rng.choice([3, 3, 3, 5, 1]))
        if drawing.affordable(width, kernel):
            drawing.pieces += [*_biased(drawing.channels, width, kernel, padding=kernel // 2), Activation()]
            drawing.channels = width


def _residual(drawing: _Drawing) -> None:
    """Sums of a body and a shortcut."""
    drawing.stem(_normalised)
    if drawing.size > 60:
        drawing.pieces += [Padding(), MaxPool(3)]
        drawing.size = (drawing.size + 2 - 3) // 2 + 1
    for width in _widths(drawing, 6):
        middle = width if drawing.rng.random() < 0.5 else max(width // 4, 16)
        stride = int(drawing.rng.integers(1, 3)) if drawing.size > 10 else 1
        if not drawing.affordable(middle, 3):
            continue
        body = [
            *_normalised(drawing.channels, middle, 1 if middle < width else 3, padding=int(middle == width)),
            Activation(),
            *_normalised(middle, middle, 3, stride=stride, padding=1),
        ]
        if middle < width:
            body += [Activation(), *_normalised(middle, width, 1)]
        projection = _normalised(drawing.channels, width, 1, stride=stride)
        reshapes = stride > 1 or drawing.channels != width
        drawing.pieces += [Sum(tuple(body), tuple(projection) if reshapes else ()), Activation()]
        drawing.channels, drawing.size = width, (drawing.size - 1) // stride + 1


def _separable(drawing: _Drawing) -> None:
    """Depthwise and then pointwise convolutions."""
    drawing.stem(_normalised)
    for width in _widths(drawing, 8):
        if drawing.affordable(width, 1):
            depthwise = Convolution(drawing.channels, drawing.channels, 3, padding=1, group=drawing.channels)
            drawing.pieces += [depthwise, *_normalised(drawing.channels, width, 1), Activation()]
            drawing.channels = width


def _fire(drawing: _Drawing) -> None:
    """Branches that are concatenated."""
    drawing.stem(_biased)
    for width in _widths(drawing, 6):
        half = width // 2
        if drawing.affordable(half, 1):
            squeezed = max(half // int(drawing.rng.integers(2, 6)), 8)
            drawing.pieces += [*_biased(drawing.channels, squeezed, 1), Activation()]
            arms = _biased(squeezed, half, 1), _biased(squeezed, half, 3, padding=1)
            drawing.pieces.append(Branches(tuple((*arm, Activation()) for arm in arms)))
            drawing.channels = 2 * half


def _inverted(drawing: _Drawing) -> None:
    """Bottlenecks that widen before a depthwise convolution, as networks for mobile devices have them."""
    drawing.stem(_normalised)
    for width in _widths(drawing, 8, pools=False):
        narrow = max(width // 4, 16)
        wide = drawing.channels * int(drawing.rng.choice([3, 4, 6]))
        kernel = int(drawing.rng.choice([3, 5]))
        stride = int(drawing.rng.integers(1, 3)) if drawing.size > 10 else 1
        if not drawing.affordable(wide, 1):
            continue
        body = (
            *_normalised(drawing.channels, wide, 1),
            Activation(bounded=True),
            Convolution(wide, wide, kernel, stride, kernel // 2, wide),
            Normalisation(wide),
            Activation(bounded=True),
            *_normalised(wide, narrow, 1),
        )
        drawing.pieces += [Sum(body)] if stride == 1 and narrow == drawing.channels else body
        drawing.channels, drawing.size = narrow, (drawing.size - 1) // stride + 1


def _widths(drawing: _Drawing, number: int, *, pools: bool = True) -> Iterator[int]:
    """Widths that grow along the network, with pooling in between."""
    for step in range(number):
        if pools and drawing.size > 12 and drawing.rng.random() < 0.5:
            drawing.pool()
        least = 24 << (step // 2)
        yield drawing.width(least, min(max(8 * least, 104), 2008))


_STYLES = (_plain, _residual, _separable, _fire, _inverted)
