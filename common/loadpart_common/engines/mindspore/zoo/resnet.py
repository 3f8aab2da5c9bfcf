"""ResNet-18 and ResNet-50.

In a bottleneck, the 3x3 convolution has the stride, as in all published weights. In the paper's first version it was
the 1x1 convolution before it; the parameters are the same.
"""

from __future__ import annotations

from mindspore import nn

from loadpart_common.engines.mindspore.zoo.layers import GlobalAveragePool, Residual, convolution_norm


def _basic(channels: int, width: int, stride: int) -> tuple[list[nn.Cell], int]:
    body = [
        *convolution_norm(channels, width, 3, stride=stride, padding=1),
        nn.ReLU(),
        *convolution_norm(width, width, 3, padding=1),
    ]
    return body, width


def _bottleneck(channels: int, width: int, stride: int) -> tuple[list[nn.Cell], int]:
    body = [
        *convolution_norm(channels, width, 1),
        nn.ReLU(),
        *convolution_norm(width, width, 3, stride=stride, padding=1),
        nn.ReLU(),
        *convolution_norm(width, 4 * width, 1),
    ]
    return body, 4 * width


def _resnet(depths: tuple[int, int, int, int], *, bottleneck: bool) -> nn.Cell:
    block = _bottleneck if bottleneck else _basic
    # After a ReLU, padding with zeros gives the same maxima as MaxPool2d's own padding, which becomes a 3-D pooling
    # with indices on a CPU and is many times slower.
    pool = [nn.Pad(((0, 0), (0, 0), (1, 1), (1, 1))), nn.MaxPool2d(3, 2)]
    cells = [*convolution_norm(3, 64, 7, stride=2, padding=3), nn.ReLU(), *pool]
    channels = 64
    for stage, depth in enumerate(depths):
        for position in range(depth):
            stride = 2 if stage > 0 and position == 0 else 1
            body, width = block(channels, 64 << stage, stride)
            reshapes = stride > 1 or channels != width
            projection = convolution_norm(channels, width, 1, stride=stride) if reshapes else []
            cells += [Residual(body, projection), nn.ReLU()]
            channels = width
    return nn.SequentialCell(*cells, GlobalAveragePool(), nn.Dense(channels, 1000))


def resnet18() -> nn.Cell:
    """Takes `N,3,224,224`, gives `N,1000`."""
    return _resnet((2, 2, 2, 2), bottleneck=False)


def resnet50() -> nn.Cell:
    """Takes `N,3,224,224`, gives `N,1000`."""
    return _resnet((3, 4, 6, 3), bottleneck=True)
