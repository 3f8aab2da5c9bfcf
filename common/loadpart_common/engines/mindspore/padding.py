"""Padding, which MindSpore does slowly on processors, as a convolution with the same result.

`Pad` takes MindSpore as long as several convolutions (17 ms of the 64 that resnet18 takes). A depthwise 1x1 convolution
with weights of 1 multiplies every element by 1 and pads with zeros: the same bits in a tenth of the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadpart.mindir.v1 import mindir_pb2
from loadpart_common.formats.mindir.dtypes import NUMBER_BY_DTYPE
from loadpart_common.formats.mindir.nodes import integers, shapes

if TYPE_CHECKING:
    from collections.abc import Iterable

_RANK = 4


def pad_by_convolution(model: mindir_pb2.Model) -> None:
    """Replaces every `Pad` of images, in single precision and over height and width alone, by a convolution."""
    primitives = {primitive.name: primitive for primitive in model.primitives}
    nodes, changed = [], False
    for node in model.graph.node:
        primitive = primitives.get(node.op_type.removeprefix("REF::"))
        if primitive is None or primitive.op_type != "Pad" or (pads := _image_pads(node, primitive)) is None:
            nodes.append(node)
            continue
        changed = True
        (output,) = shapes(node)
        channels = output.dims[1]
        ones = _ones(f"{node.name}.ones", channels)
        convolution = _convolution(f"Conv2D:{node.name}", channels, pads)
        model.primitives.append(convolution)
        replaced = mindir_pb2.Node()
        replaced.CopyFrom(node)
        replaced.op_type = f"REF::{convolution.name}"
        replaced.input.append(ones.name)
        nodes += (ones, replaced)
    if changed:
        model.graph.ClearField("node")
        model.graph.node.extend(nodes)


def _image_pads(node: mindir_pb2.Node, primitive: mindir_pb2.Primitive) -> tuple[int, ...] | None:
    """Rows and columns that are added: above, below, left, right; None for other padding."""
    output, *others = shapes(node)
    paddings = next((tuple(integers(each)) for each in primitive.attribute if each.name == "paddings"), ())
    fits = (
        not others
        and output.data_type == NUMBER_BY_DTYPE["float32"]
        and len(output.dims) == _RANK
        and len(paddings) == 2 * _RANK
        and not any(paddings[:4])
        and min(paddings) >= 0
    )
    return paddings[4:] if fits else None


def _ones(name: str, channels: int) -> mindir_pb2.Node:
    node = mindir_pb2.Node(name=name, op_type="Constant", output=[name])
    value = node.attribute.add(name="value", type=mindir_pb2.ATTRIBUTE_TYPE_TENSORS)
    value.tensors.add(
        name="value0",
        dims=[channels, 1, 1, 1],
        data_type=NUMBER_BY_DTYPE["float32"],
        raw_data=np.ones(channels, np.float32).tobytes(),
    )
    return node


def _convolution(name: str, channels: int, pads: tuple[int, ...]) -> mindir_pb2.Primitive:
    """A depthwise 1x1 convolution as MindSpore itself writes one."""
    primitive = mindir_pb2.Primitive(name=name, op_type="Conv2D", prim_type=1)
    attributes = primitive.attribute
    for key, number in (("mode", 1), ("out_channel", channels), ("groups", channels), ("group", channels)):
        attributes.add(name=key, type=mindir_pb2.ATTRIBUTE_TYPE_INT64, i=number)
    for key, text in (("pad_mode", b"pad"), ("format", b"NCHW")):
        attributes.add(name=key, type=mindir_pb2.ATTRIBUTE_TYPE_STRING, s=text)
    lists: dict[str, Iterable[int]] = {
        "kernel_size": (1, 1), "pad": pads, "pad_list": pads, "stride": (1, 1, 1, 1), "dilation": (1, 1, 1, 1),
    }  # fmt: skip
    for key, numbers in lists.items():
        attribute = attributes.add(name=key, type=mindir_pb2.ATTRIBUTE_TYPE_TUPLE)
        for number in numbers:
            attribute.values.add(type=mindir_pb2.ATTRIBUTE_TYPE_INT64, ints=[number])
    return primitive
