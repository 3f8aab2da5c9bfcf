"""How each kind of MindIR operator is written as ONNX.

Every function takes the translator, the node, and the names of its output tensors, and adds ONNX nodes. MindSpore has
two generations of operators: those that keep their settings as attributes (`Conv2D`), and those that take them as
inputs (`Conv2DExt`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadpart.mindir.v1 import mindir_pb2
    from loadpart_common.formats.mindir.translator import Translation, Translator

_SPATIAL = 2
_LARGEST = int(np.iinfo(np.int64).max)
_SLICE_MASKS = ("begin_mask", "end_mask", "ellipsis_mask", "new_axis_mask", "shrink_axis_mask")
_PAD_MODES = {0: "pad", 1: "same", 2: "valid"}


def _same(kind: str, **attributes: object) -> Translation:
    """One ONNX operator of the same inputs."""

    def translate(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
        to.add(kind, [to.tensor(node.input[0])], outputs[:1], **attributes)

    return translate


def _binary(kind: str) -> Translation:
    def translate(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
        to.add(kind, [to.tensor(name) for name in node.input[:2]], outputs[:1])

    return translate


def _cast(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    to.add("Cast", [to.tensor(node.input[0])], outputs, to=helper.np_dtype_to_tensor_dtype(np.dtype(to.dtype(node))))


def _transpose(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    to.add("Transpose", [to.tensor(node.input[0])], outputs, perm=_ints(to, node, 1))


def _bias_add(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    rank = len(to.output_shape(node))
    bias = to.tensor(node.input[1])
    if rank > _SPATIAL:
        shape = np.array([-1] + [1] * (rank - 2), np.int64)
        wide = f"{outputs[0]}.bias"
        to.add("Reshape", [bias, to.constant(shape)], [wide])
        bias = wide
    to.add("Add", [to.tensor(node.input[0]), bias], outputs)


def _conv2d(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    kernel = to.shape(node.input[1])[2:]
    strides, dilations = _last_two(to, node, "stride"), _last_two(to, node, "dilation")
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    to.add(
        "Conv", [to.tensor(node.input[0]), to.tensor(node.input[1])], outputs,
        kernel_shape=list(kernel), strides=strides, dilations=dilations,
        group=to.attributes(node, "group", "groups")[0],
        pads=_pads(to, node, to.text(node, "pad_mode"), reach, strides),
    )  # fmt: skip


def _conv2d_ext(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    image, weight, bias, stride, padding, dilation, group = (*node.input, "", "")[:7]
    kernel = to.shape(weight)[2:]
    pads = _pair(to, node, padding)
    inputs = [to.tensor(image), to.tensor(weight)]
    if not _is_none(to, bias):
        inputs.append(to.tensor(bias))
    to.add(
        "Conv", inputs, outputs, kernel_shape=list(kernel), strides=_pair(to, node, stride),
        dilations=_pair(to, node, dilation), group=int((to.numbers(group) or (1,))[0]), pads=[*pads, *pads],
    )  # fmt: skip


def _batch_norm(epsilon_at: int) -> Translation:
    """Normalisation by running means; which input is the epsilon differs between the generations."""

    def translate(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
        *inputs, training = node.input[:6]
        if any(to.numbers(training) or ()):
            raise to.refuse(node, "it was exported for training")
        (epsilon,) = to.numbers(node.input[epsilon_at]) or (1e-5,)
        to.add("BatchNormalization", [to.tensor(name) for name in inputs], outputs[:1], epsilon=epsilon)

    return translate


def _pool(kind: str) -> Translation:
    extra = {"count_include_pad": 0} if kind == "AveragePool" else {}

    def translate(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
        if len(node.input) > 3:
            kernel, strides = _ints(to, node, 1), _ints(to, node, 2)
            mode = _PAD_MODES.get(_ints(to, node, 3)[0], "")
        else:
            kernel, strides = _last_two(to, node, "kernel_size"), _last_two(to, node, "strides", "stride")
            mode = to.text(node, "pad_mode")
        pads = _pads(to, node, mode, kernel, strides)
        to.add(kind, [to.tensor(node.input[0])], outputs[:1], kernel_shape=kernel, strides=strides, pads=pads, **extra)

    return translate


def _avg_pool2d(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    image, kernel, stride, padding, ceil, include = node.input[:6]
    sizes, pads = _pair(to, node, kernel), _pair(to, node, padding)
    to.add(
        "AveragePool", [to.tensor(image)], outputs, kernel_shape=sizes,
        strides=_pair(to, node, stride) if to.numbers(stride) else sizes, pads=[*pads, *pads],
        ceil_mode=int(_flag(to, ceil)), count_include_pad=int(_flag(to, include)),
    )  # fmt: skip


def _max_pool_with_mask(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    image, kernel, stride, padding, dilation, ceil = node.input[:6]
    sizes, pads = _pair(to, node, kernel), _pair(to, node, padding)
    to.add(
        "MaxPool", [to.tensor(image)], outputs[:1], kernel_shape=sizes,
        strides=_pair(to, node, stride) if to.numbers(stride) else sizes, pads=[*pads, *pads],
        dilations=_pair(to, node, dilation), ceil_mode=int(_flag(to, ceil)),
    )  # fmt: skip


def _adaptive_avg_pool(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    height, width = to.output_shape(node)[-2:]
    if (height, width) != (1, 1):
        raise to.refuse(node, f"expected an output of 1 x 1, got {height} x {width}")
    to.add("GlobalAveragePool", [to.tensor(node.input[0])], outputs)


def _reduce(kind: str) -> Translation:
    def translate(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
        axes = _axes(to, node)
        if not axes:
            raise to.refuse(node, "it names no axes")
        keeps = len(to.output_shape(node)) == len(to.shape(node.input[0]))
        inputs = [to.tensor(node.input[0])]
        if kind == "ReduceSum":  # whose axes are an input from version 13 of the operators on
            to.add(kind, [*inputs, to.constant(np.array(axes, np.int64))], outputs, keepdims=int(keeps))
        else:
            to.add(kind, inputs, outputs, axes=axes, keepdims=int(keeps))

    return translate


def _matmul(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    left, right = (to.tensor(name) for name in node.input[:2])
    flags = [_flag(to, name) for name in node.input[2:4]] or [False, False]
    if len(flags) < 2:  # two operands
        flags = [bool(sum(to.attributes(node, key))) for key in ("transpose_a", "transpose_b")]
    ranks = [len(to.shape(name)) for name in node.input[:2]]
    if ranks == [2, 2]:
        to.add("Gemm", [left, right], outputs, transA=int(flags[0]), transB=int(flags[1]))
        return
    right = _swapped(to, right, ranks[1], f"{outputs[0]}.right") if flags[1] else right
    left = _swapped(to, left, ranks[0], f"{outputs[0]}.left") if flags[0] else left
    to.add("MatMul", [left, right], outputs)


def _swapped(to: Translator, tensor: str, rank: int, name: str) -> str:
    """A tensor with its last two axes exchanged."""
    order = list(range(rank))
    order[-2:] = order[-1], order[-2]
    to.add("Transpose", [tensor], [name], perm=order)
    return name


def _dense(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    image, weight, *bias = node.input[:3]
    inputs = [to.tensor(image), to.tensor(weight)]
    if bias and not _is_none(to, bias[0]):
        inputs.append(to.tensor(bias[0]))
    if len(to.output_shape(node)) == _SPATIAL:
        to.add("Gemm", inputs, outputs, transB=1)
        return
    product = outputs[0] if len(inputs) == 2 else f"{outputs[0]}.product"  # no bias
    to.add("MatMul", [inputs[0], _swapped(to, inputs[1], 2, f"{outputs[0]}.weight")], [product])
    if len(inputs) > 2:
        to.add("Add", [product, inputs[2]], outputs)


def _concat(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    axes = _axes(to, node)
    to.add("Concat", to.tensors(node.input[0]), outputs, axis=axes[0])


def _flatten(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    if len(to.output_shape(node)) != _SPATIAL:
        raise to.refuse(node, "it keeps more than the batch and one other axis")
    to.add("Flatten", [to.tensor(node.input[0])], outputs, axis=1)


def _reshape(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    to.add("Reshape", [to.tensor(node.input[0]), to.constant(np.array(_ints(to, node, 1), np.int64))], outputs)


def _pad(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    paddings = to.attributes(node, "paddings")
    if len(paddings) != 2 * len(to.output_shape(node)):
        raise to.refuse(node, "it names no padding for each axis")
    pads = [*paddings[0::2], *paddings[1::2]]
    to.add("Pad", [to.tensor(node.input[0]), to.constant(np.array(pads, np.int64))], outputs)


def _clip(low: float, high: float) -> Translation:
    def translate(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
        bounds = [to.constant(np.array(bound, to.dtype(node))) for bound in (low, high)]
        to.add("Clip", [to.tensor(node.input[0]), *bounds], outputs)

    return translate


def _clamp(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    bounds = []
    for name in node.input[1:3]:
        numbers = None if _is_none(to, name) else to.numbers(name)
        bounds.append("" if numbers is None else to.constant(np.array(numbers[0], to.dtype(node))))
    to.add("Clip", [to.tensor(node.input[0]), *bounds], outputs)


def _silu(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    image, gate = to.tensor(node.input[0]), f"{outputs[0]}.gate"
    to.add("Sigmoid", [image], [gate])
    to.add("Mul", [image, gate], outputs)


def _softmax(kind: str) -> Translation:
    def translate(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
        axes = _axes(to, node)
        to.add(kind, [to.tensor(node.input[0])], outputs, axis=axes[0] if axes else -1)

    return translate


def _split(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    axes = _axes(to, node)
    size = to.shape(node.input[0])[axes[0]] // len(outputs)
    sizes = to.constant(np.full(len(outputs), size, np.int64))
    to.add("Split", [to.tensor(node.input[0]), sizes], outputs, axis=axes[0])


def _strided_slice(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    begin, end, strides = (_ints(to, node, index) for index in (1, 2, 3))
    if len(node.input) > 4:
        masks = [_ints(to, node, index)[0] for index in range(4, 9)]
    else:
        masks = [sum(to.attributes(node, key)) for key in _SLICE_MASKS]
    begin_mask, end_mask, ellipsis_mask, new_axis_mask, shrink_mask = masks
    if ellipsis_mask or new_axis_mask:
        raise to.refuse(node, "it has an ellipsis or a new axis")
    sizes = to.shape(node.input[0])
    for axis, size in enumerate(sizes[: len(begin)]):
        if begin_mask >> axis & 1:
            begin[axis] = 0 if strides[axis] > 0 else _LARGEST
        if end_mask >> axis & 1 or (strides[axis] > 0 and end[axis] >= size):
            end[axis] = _LARGEST if strides[axis] > 0 else -_LARGEST
        if shrink_mask >> axis & 1:
            end[axis], strides[axis] = begin[axis] + 1 or _LARGEST, 1
    shrunk = [axis for axis in range(len(begin)) if shrink_mask >> axis & 1]
    lists = [np.array(each, np.int64) for each in (begin, end, range(len(begin)), strides)]
    cut = f"{outputs[0]}.cut" if shrunk else outputs[0]
    to.add("Slice", [to.tensor(node.input[0]), *map(to.constant, lists)], [cut])
    if shrunk:
        to.add("Squeeze", [cut, to.constant(np.array(shrunk, np.int64))], outputs)


def _layer_norm(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    image, scale, bias, first, parameters, epsilon = node.input[:6]
    axis = (to.numbers(first) or (-1,))[0]
    if axis != (to.numbers(parameters) or (-1,))[0]:
        raise to.refuse(node, "it normalises other axes than it scales")
    (value,) = to.numbers(epsilon) or (1e-7,)
    inputs = [to.tensor(name) for name in (image, scale, bias)]
    to.add("LayerNormalization", inputs, outputs[:1], axis=int(axis), epsilon=value)


def _gelu(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), as MindSpore computes it (Hendrycks and Gimpel 2016)."""
    image, name = to.tensor(node.input[0]), outputs[0]
    cubic, inner, half, one = (to.constant(np.float32(c).reshape(())) for c in (0.044715, (2 / np.pi) ** 0.5, 0.5, 1.0))
    to.add("Mul", [image, image], [f"{name}.square"])
    to.add("Mul", [f"{name}.square", image], [f"{name}.cube"])
    to.add("Mul", [f"{name}.cube", cubic], [f"{name}.cubic"])
    to.add("Add", [image, f"{name}.cubic"], [f"{name}.sum"])
    to.add("Mul", [f"{name}.sum", inner], [f"{name}.inner"])
    to.add("Tanh", [f"{name}.inner"], [f"{name}.tanh"])
    to.add("Add", [f"{name}.tanh", one], [f"{name}.gate"])
    to.add("Mul", [image, half], [f"{name}.half"])
    to.add("Mul", [f"{name}.half", f"{name}.gate"], outputs)


def _resize_nearest(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    given, wanted = to.shape(node.input[0]), to.output_shape(node)
    flags = [*to.attributes(node, "align_corners"), *to.attributes(node, "half_pixel_centers")]
    flags += [int(_flag(to, name)) for name in node.input[2:4]]
    if any(flags) or any(size % before for size, before in zip(wanted[2:], given[2:], strict=True)):
        raise to.refuse(node, "it does not repeat every pixel equally often")
    scales = np.array([1, 1, *(size / before for size, before in zip(wanted[2:], given[2:], strict=True))], np.float32)
    to.add(
        "Resize", [to.tensor(node.input[0]), "", to.constant(scales)], outputs,
        mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip


def _inplace_add(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    if len(node.input) > 2 and (to.numbers(node.input[2]) or (1,)) != (1,):  # the factor
        raise to.refuse(node, "it scales what it adds")
    _binary("Add")(to, node, outputs)


def _leaky_relu(to: Translator, node: mindir_pb2.Node, outputs: Sequence[str]) -> None:
    (slope,) = to.numbers(node.input[1]) or (0.01,)
    to.add("LeakyRelu", [to.tensor(node.input[0])], outputs, alpha=slope)


def _ints(to: Translator, node: mindir_pb2.Node, index: int) -> list[int]:
    """The integers of a constant input."""
    numbers = to.numbers(node.input[index])
    if numbers is None:
        raise to.refuse(node, f"its input {index} is no constant")
    return [int(number) for number in numbers]


def _axes(to: Translator, node: mindir_pb2.Node) -> list[int]:
    """The axes that a node names as its second input, or as an attribute."""
    return _ints(to, node, 1) if len(node.input) > 1 else list(to.attributes(node, "axis"))


def _pair(to: Translator, node: mindir_pb2.Node, name: str) -> list[int]:
    """Sizes for height and width, from one or two integers."""
    numbers = [int(number) for number in to.numbers(name) or ()]
    if len(numbers) not in {1, _SPATIAL}:
        raise to.refuse(node, "expected one or two sizes")
    return numbers * 2 if len(numbers) == 1 else numbers


def _last_two(to: Translator, node: mindir_pb2.Node, *keys: str) -> list[int]:
    """The sizes for height and width of an attribute."""
    numbers = list(to.attributes(node, *keys))
    return numbers[-2:] if len(numbers) > 1 else numbers * 2


def _pads(to: Translator, node: mindir_pb2.Node, mode: str, reach: Sequence[int], strides: Sequence[int]) -> list[int]:
    """Padding above, left, below, right: as given, or such that the output is as many strides long as the input."""
    if mode == "valid":
        return [0, 0, 0, 0]
    if mode == "same":
        sizes = zip(to.shape(node.input[0])[2:], to.output_shape(node)[2:], reach, strides, strict=True)
        totals = [max((out - 1) * stride + size - given, 0) for given, out, size, stride in sizes]
        before = [total // 2 for total in totals]
        return [*before, *(total - first for total, first in zip(totals, before, strict=True))]
    given = to.attributes(node, "pad_list", "pad")
    if len(given) != 4:
        raise to.refuse(node, f"expected padding on four sides, got {list(given)}")
    top, bottom, left, right = given
    return [top, left, bottom, right]


def _flag(to: Translator, name: str) -> bool:
    return bool(sum(to.numbers(name) or ()))


def _is_none(to: Translator, name: str) -> bool:
    """Whether an input is the constant None."""
    return not name or to.numbers(name) == ()


TRANSLATIONS: dict[str, Translation] = {
    "Abs": _same("Abs"),
    "AdaptiveAvgPool2D": _adaptive_avg_pool,
    "AdaptiveAvgPool2DExt": _adaptive_avg_pool,
    "Add": _binary("Add"),
    "AvgPool": _pool("AveragePool"),
    "AvgPool2D": _avg_pool2d,
    "BatchNorm": _batch_norm(6),
    "BatchNormExt": _batch_norm(7),
    "BiasAdd": _bias_add,
    "Cast": _cast,
    "ClampScalar": _clamp,
    "Concat": _concat,
    "Conv2D": _conv2d,
    "Conv2DExt": _conv2d_ext,
    "Dense": _dense,
    "Div": _binary("Div"),
    "Elu": _same("Elu"),
    "Erf": _same("Erf"),
    "Exp": _same("Exp"),
    "Flatten": _flatten,
    "GeLU": _gelu,
    "HSigmoid": _same("HardSigmoid", alpha=1 / 6, beta=0.5),
    "HSwish": _same("HardSwish"),
    "InplaceAddExt": _inplace_add,
    "LayerNorm": _layer_norm,
    "LeakyReLUExt": _leaky_relu,
    "Log": _same("Log"),
    "LogSoftmax": _softmax("LogSoftmax"),
    "MatMul": _matmul,
    "BatchMatMul": _matmul,
    "MaxPool": _pool("MaxPool"),
    "MaxPoolWithMask": _max_pool_with_mask,
    "Maximum": _binary("Max"),
    "MeanExt": _reduce("ReduceMean"),
    "Minimum": _binary("Min"),
    "Mul": _binary("Mul"),
    "Muls": _binary("Mul"),
    "Neg": _same("Neg"),
    "Pad": _pad,
    "Pow": _binary("Pow"),
    "RealDiv": _binary("Div"),
    "ReLU": _same("Relu"),
    "ReLU6": _clip(0.0, 6.0),
    "ReduceMax": _reduce("ReduceMax"),
    "ReduceMean": _reduce("ReduceMean"),
    "ReduceMin": _reduce("ReduceMin"),
    "ReduceSum": _reduce("ReduceSum"),
    "Reshape": _reshape,
    "ResizeNearestNeighbor": _resize_nearest,
    "Sigmoid": _same("Sigmoid"),
    "SiLU": _silu,
    "Softmax": _softmax("Softmax"),
    "Softplus": _same("Softplus"),
    "Softsign": _same("Softsign"),
    "Split": _split,
    "Sqrt": _same("Sqrt"),
    "Square": lambda to, node, outputs: to.add("Mul", [to.tensor(node.input[0])] * 2, outputs),
    "StridedSlice": _strided_slice,
    "Sub": _binary("Sub"),
    "Swish": _silu,
    "Tanh": _same("Tanh"),
    "TensorMove": _same("Identity"),
    "Transpose": _transpose,
}
"""The function for each kind of operator."""
