"""AlexNet, in the one-tower form of 2014."""

from __future__ import annotations

from mindspore import nn

from loadpart_common.engines.mindspore.zoo.layers import convolution


def alexnet() -> nn.Cell:
    """Takes `N,3,224,224`, gives `N,1000`."""
    return nn.SequentialCell(
        convolution(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        convolution(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        convolution(192, 384, 3, padding=1),
        nn.ReLU(),
        convolution(384, 256, 3, padding=1),
        nn.ReLU(),
        convolution(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Flatten(),
        nn.Dense(256 * 6 * 6, 4096),
        nn.ReLU(),
        nn.Dense(4096, 4096),
        nn.ReLU(),
        nn.Dense(4096, 1000),
    )
