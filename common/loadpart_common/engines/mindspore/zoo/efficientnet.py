"""EfficientNet-Lite0: EfficientNet-B0 without squeeze-and-excitation, and with ReLU6 for Swish."""

from __future__ import annotations

from mindspore import nn, ops

from loadpart_common.engines.mindspore.zoo.layers import GlobalAveragePool

_EPSILON = 1e-3
"""Of the normalisations, as the published weights were trained."""

_STAGES = (
    # expansion, kernel, stride, channels, blocks: table 1 of the paper
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000


def _convolution(channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, group: int = 1) -> nn.Conv2d:
    """A convolution that pads as TensorFlow's `SAME` does: at a stride of 2 more at the bottom and on the right."""
    return nn.Conv2d(channels_in, channels_out, kernel, stride=stride, pad_mode="same", group=group, has_bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON)


class InvertedBottleneck(nn.Cell):  # type: ignore[misc]  # MindSpore has no types
    """Widens the channels, convolves each by itself, and narrows them; its input is added where the shapes are equal.

    The attributes have the names that they have in the published weights.
    """

    def __init__(self, channels_in: int, channels_out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and channels_in == channels_out
        if self.expands:
            self.expand_conv, self.bn0 = _convolution(channels_in, wide, 1), _norm(wide)
        self.depthwise_conv, self.bn1 = _convolution(wide, wide, kernel, stride=stride, group=wide), _norm(wide)
        self.project_conv, self.bn2 = _convolution(wide, channels_out, 1), _norm(channels_out)

    def construct(self, x):  # type: ignore[no-untyped-def]  # noqa: D102  # compiled by MindSpore, not by Python
        y = ops.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        y = ops.relu6(self.bn1(self.depthwise_conv(y)))
        y = self.bn2(self.project_conv(y))
        return y + x if self.adds else y


class EfficientNetLite(nn.Cell):  # type: ignore[misc]  # MindSpore has no types
    """The network; its attributes have the names that they have in the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = _convolution(3, _STEM, 3, stride=2), _norm(_STEM)
        blocks, channels = [], _STEM
        for expansion, kernel, stride, width, count in _STAGES:
            for index in range(count):
                blocks.append(InvertedBottleneck(channels, width, expansion, kernel, stride if index == 0 else 1))
                channels = width
        self.blocks = nn.SequentialCell(*blocks)
        self.conv_head, self.bn1 = _convolution(channels, _HEAD, 1), _norm(_HEAD)
        self.pool = GlobalAveragePool()
        self.fc = nn.Dense(_HEAD, _CLASSES)

    def construct(self, x):  # type: ignore[no-untyped-def]  # noqa: D102  # compiled by MindSpore, not by Python
        x = self.blocks(ops.relu6(self.bn0(self.conv_stem(x))))
        return self.fc(self.pool(ops.relu6(self.bn1(self.conv_head(x)))))


def efficientnet_lite0() -> nn.Cell:
    """Takes `N,3,224,224`, gives `N,1000`."""
    return EfficientNetLite()
