"""VGG, configuration D: thirteen convolutions and three dense layers."""

from __future__ import annotations

from mindspore import nn

from loadpart_common.engines.mindspore.zoo.layers import convolution

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def vgg16() -> nn.Cell:
    """Takes `N,3,224,224`, gives `N,1000`."""
    cells: list[nn.Cell] = []
    channels = 3
    for width, depth in _STAGES:
        for _ in range(depth):
            cells += [convolution(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        cells.append(nn.MaxPool2d(2, 2))
    cells += [nn.Flatten(), nn.Dense(512 * 7 * 7, 4096), nn.ReLU(), nn.Dense(4096, 4096), nn.ReLU()]
    return nn.SequentialCell(*cells, nn.Dense(4096, 1000))
