"""Xception: depthwise separable convolutions with residual connections."""

from __future__ import annotations

from mindspore import nn

from loadpart_common.engines.mindspore.zoo.layers import GlobalAveragePool, Residual, convolution_norm, separable


def _down(channels_in: int, middle: int, channels_out: int, *, relu_first: bool = True) -> Residual:
    first = [nn.ReLU()] if relu_first else []
    body = [*first, *separable(channels_in, middle), nn.ReLU(), *separable(middle, channels_out)]
    pool = nn.MaxPool2d(3, 2, "same")
    return Residual([*body, pool], convolution_norm(channels_in, channels_out, 1, stride=2))


def _middle(channels: int) -> Residual:
    body: list[nn.Cell] = []
    for _ in range(3):
        body += [nn.ReLU(), *separable(channels, channels)]
    return Residual(body, [])


def xception() -> nn.Cell:
    """Takes `N,3,299,299`, gives `N,1000`."""
    return nn.SequentialCell(
        *convolution_norm(3, 32, 3, stride=2),
        nn.ReLU(),
        *convolution_norm(32, 64, 3),
        nn.ReLU(),
        _down(64, 128, 128, relu_first=False),
        _down(128, 256, 256),
        _down(256, 728, 728),
        *[_middle(728) for _ in range(8)],
        _down(728, 728, 1024),
        *separable(1024, 1536),
        nn.ReLU(),
        *separable(1536, 2048),
        nn.ReLU(),
        GlobalAveragePool(),
        nn.Dense(2048, 1000),
    )
