"""SqueezeNet 1.0."""

from __future__ import annotations

from mindspore import nn, ops

from loadpart_common.engines.mindspore.zoo.layers import GlobalAveragePool, convolution


class Fire(nn.Cell):  # type: ignore[misc]  # MindSpore has no types
    """Squeezes the channels, then expands them with 1x1 and 3x3 convolutions side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.SequentialCell(convolution(channels, squeeze, 1), nn.ReLU())
        self.expand1 = nn.SequentialCell(convolution(squeeze, expand, 1), nn.ReLU())
        self.expand3 = nn.SequentialCell(convolution(squeeze, expand, 3, padding=1), nn.ReLU())

    def construct(self, x):  # type: ignore[no-untyped-def]  # noqa: D102  # compiled by MindSpore, not by Python
        x = self.squeeze(x)
        return ops.concat((self.expand1(x), self.expand3(x)), axis=1)


def squeezenet() -> nn.Cell:
    """Takes `N,3,224,224`, gives `N,1000`; feature maps of 111, 55, 27 and 13, as in the paper's table 1."""
    return nn.SequentialCell(
        convolution(3, 96, 7, stride=2, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        Fire(96, 16, 64),
        Fire(128, 16, 64),
        Fire(128, 32, 128),
        nn.MaxPool2d(3, 2),
        Fire(256, 32, 128),
        Fire(256, 48, 192),
        Fire(384, 48, 192),
        Fire(384, 64, 256),
        nn.MaxPool2d(3, 2),
        Fire(512, 64, 256),
        convolution(512, 1000, 1),
        nn.ReLU(),
        GlobalAveragePool(),
    )
