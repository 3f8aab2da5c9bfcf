"""Whether a model that was exported for one batch size may be run with another.

Shapes in a file are those of the batch that it was exported with. Most operators work for any batch size, but some have
a size written into them: a reshape to (1, 9216), a slice up to row 1. A wrong guess would give wrong answers, so a
model may run with another batch size only if all its operators are known to work for any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FREE = frozenset(
    {
        "Abs", "Add", "AddN", "AvgPool", "BatchNorm", "BatchNormExt", "BatchNormWithActivation", "BiasAdd", "Cast",
        "Clamp", "ClampScalar", "Conv2D", "Conv2DExt", "Conv2DPadding", "ConvStride", "Convolution", "DepthwiseConv2D",
        "Dense", "Div", "Elu", "Erf", "Exp", "Flatten", "GeLU", "Gelu", "HSigmoid", "HSwish", "LeakyReLU", "Log",
        "MatMul", "MaxPool", "Maximum", "Minimum", "Mish", "Mul", "Muls", "Neg", "Pow", "PReLU", "ReLU", "ReLU6",
        "RealDiv", "Rsqrt", "Sigmoid", "SiLU", "Softplus", "Sqrt", "Square", "Sub", "Swish", "Tanh", "TensorMove",
        "AvgPool2D", "MaxPoolWithMask", "AdaptiveAvgPool2D", "AdaptiveAvgPool2DExt", "Softsign", "InplaceAddExt",
    }
)  # fmt: skip
"""Operators that treat every item of the batch alike and hold no batch size."""

_AXIS_SECOND = frozenset(
    {"Concat", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "MeanExt", "Softmax", "LogSoftmax", "Split"}
)
"""Operators whose second input (or attribute) names axes; any batch size works if the batch axis is not among them."""


class Nodes(Protocol):
    """The properties of a program's nodes that the check needs; nodes are given by name."""

    def kind(self, name: str) -> str:
        """Operator kind."""

    def inputs(self, name: str) -> Sequence[str]:
        """Names of its inputs."""

    def constant(self, name: str) -> tuple[int, ...] | None:
        """The integers of a constant; None when the node is no constant of integers."""

    def attributes(self, name: str, *keys: str) -> tuple[int, ...]:
        """The integers of the first attribute among `keys` that the node has."""

    def members(self, name: str) -> Iterator[str]:
        """The names that a tuple packs; the name itself when it is no tuple."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape for one item of the batch."""


def allows_any_batch(program: Nodes, name: str) -> bool:
    """Whether a node gives the right answer for any batch size, whatever size it was exported with."""
    kind = program.kind(name)
    if kind in _FREE:
        return True
    inputs = program.inputs(name)
    if kind in _AXIS_SECOND:
        axes = program.constant(inputs[1]) if len(inputs) > 1 else None
        axes = axes or program.attributes(name, "axis")
        return bool(axes) and all(axis != 0 and axis > -len(_first_shape(program, name)) for axis in axes)
    if kind == "Transpose":
        order = program.constant(inputs[1]) if len(inputs) > 1 else None
        return order is not None and order[:1] == (0,)
    if kind == "Reshape":
        shape = program.constant(inputs[1]) if len(inputs) > 1 else None
        return shape is not None and shape[:1] == (-1,)
    if kind == "Pad":
        return program.attributes(name, "paddings")[:2] == (0, 0)
    return False


def _first_shape(program: Nodes, name: str) -> tuple[int, ...]:
    """Shape of a node's first input."""
    source = next(program.members(program.inputs(name)[0]))
    return program.shape(source) or ()
