"""Building blocks that several networks share."""

from __future__ import annotations

from mindspore import nn


def convolution(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """A convolution with a bias."""
    return nn.Conv2d(channels_in, channels_out, kernel, stride=stride, pad_mode="pad", padding=padding, has_bias=True)


def convolution_norm(
    channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, padding: int = 0, group: int = 1
) -> list[nn.Cell]:
    """A convolution without a bias, and batch normalisation after it."""
    convolve = nn.Conv2d(
        channels_in, channels_out, kernel, stride=stride, pad_mode="pad", padding=padding, group=group, has_bias=False
    )
    return [convolve, nn.BatchNorm2d(channels_out)]


def separable(channels_in: int, channels_out: int) -> list[nn.Cell]:
    """A depthwise 3x3 convolution, a pointwise (1x1) convolution, and batch normalisation."""
    depthwise = nn.Conv2d(channels_in, channels_in, 3, pad_mode="pad", padding=1, group=channels_in, has_bias=False)
    return [depthwise, *convolution_norm(channels_in, channels_out, 1)]


class Residual(nn.Cell):  # type: ignore[misc]  # MindSpore has no types
    """A body whose result is added to its input, or to a projection of it."""

    def __init__(self, body: list[nn.Cell], projection: list[nn.Cell]) -> None:
        super().__init__()
        self.body = nn.SequentialCell(*body)
        self.projection = nn.SequentialCell(*projection) if projection else None

    def construct(self, x):  # type: ignore[no-untyped-def]  # noqa: D102  # compiled by MindSpore, not by Python
        shortcut = x if self.projection is None else self.projection(x)
        return self.body(x) + shortcut


class GlobalAveragePool(nn.Cell):  # type: ignore[misc]  # MindSpore has no types
    """The mean over height and width: `N,C,H,W` to `N,C`."""

    def construct(self, x):  # type: ignore[no-untyped-def]  # noqa: D102  # compiled by MindSpore, not by Python
        return x.mean((2, 3))
