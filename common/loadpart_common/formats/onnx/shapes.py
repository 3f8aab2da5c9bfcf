"""The sizes of a model's tensors.

ONNX's own inference finds most of them. Some hang on numbers that the model computes from sizes, as where a network
makes the grid that its boxes are counted from; such small numbers are computed here, as far as no input is needed.
Which sizes are the batch size shows when this is done for two batch sizes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from loadpart_common.errors import ModelError
from loadpart_common.tensors import BATCH, DTYPES, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from loadpart_common.tensors import Array

    Specs = dict[str, TensorSpec | None]

BATCH_NAME = "loadpart_batch"
"""What the size of inputs that is the batch size is called in a model."""

_BATCHES = 2, 3
_MOST_ELEMENTS = 1 << 12  # of each operand; so there are at most its square in a result
_MOST_ROUNDS = 20

_COMPUTED = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Ceil", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand", "Floor",
        "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "ReduceMax",
        "ReduceMin", "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile",
        "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""Operators with which models compute sizes, coordinates and the like."""


def infer(model: onnx.ModelProto, title: str, *, has_batch: bool) -> Specs:
    """What is known of each tensor; None for one that cannot cross a cut.

    Args:
        model: The model; where it takes any batch size, the first size of its inputs is `BATCH_NAME`.
        title: What the model is called in messages.
        has_batch: Whether it takes any batch size.

    Raises:
        ModelError: The shapes do not fit each other.
    """
    if not has_batch:
        return {name: _spec(name, info) for name, info in _infos(model, title).items()}
    one, other = (_infos(_with_batch(model, batch), title) for batch in _BATCHES)
    return {name: _spec(name, _joined(info, other[name])) for name, info in one.items() if name in other}


_Info = tuple[str, tuple[int, ...]] | None
"""Element type and sizes; None when they are not known."""


def _joined(one: _Info, other: _Info) -> _Info:
    """What is known of a tensor for any batch size, from two."""
    if one is None or other is None or one[0] != other[0] or len(one[1]) != len(other[1]):
        return None
    sizes = list(one[1])
    for axis, pair in enumerate(zip(one[1], other[1], strict=True)):
        if axis == 0 and pair == _BATCHES:
            sizes[0] = BATCH
        elif pair[0] != pair[1]:
            return None
    return one[0], tuple(sizes)


def _spec(name: str, info: _Info) -> TensorSpec | None:
    return TensorSpec(name, *info) if info is not None and info[0] in DTYPES else None


def _with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    fix_batch(made.graph.input, batch)
    return made


def _infos(model: onnx.ModelProto, title: str) -> dict[str, _Info]:
    """Element types and sizes of all tensors of a model whose inputs have fixed sizes.

    Raises:
        ModelError: The shapes do not fit each other.
    """
    left = onnx.ModelProto()
    left.CopyFrom(model)
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    known: dict[str, Array] = {}
    for _ in range(_MOST_ROUNDS):
        try:
            inferred = shape_inference.infer_shapes(left, strict_mode=True, data_prop=True).graph
        except Exception as error:  # its errors have no base class of their own
            raise ModelError(f"{title}: the shapes do not fit each other: {error}") from error
        infos = {info.name: _info(info) for info in (*inferred.value_info, *inferred.input, *inferred.output)}
        missing = any(infos.get(name) is None for node in left.graph.node for name in node.output if name)
        computed = _compute(left, infos, opsets) if missing else {}
        if not computed:
            break
        known |= computed
        _replace(left, computed)
    return infos | {name: (array.dtype.name, array.shape) for name, array in known.items()}


def _info(info: onnx.ValueInfoProto) -> _Info:
    kind = info.type.tensor_type
    sizes = kind.shape.dim
    if not info.type.HasField("tensor_type") or not kind.HasField("shape"):
        return None
    if not all(size.HasField("dim_value") and size.dim_value >= 0 for size in sizes):
        return None
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name, tuple(size.dim_value for size in sizes)
    except (KeyError, TypeError):
        return None


def _compute(model: onnx.ModelProto, infos: Mapping[str, _Info], opsets: Mapping[str, int]) -> dict[str, Array]:
    """The results of nodes that hang on sizes and small weights alone."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if _is_small(tensor)}
    computed: dict[str, Array] = {}
    for node in model.graph.node:
        if node.op_type not in _COMPUTED or node.domain not in {"", "ai.onnx"}:
            continue
        info = infos.get(node.input[0]) if node.op_type in {"Shape", "Size"} else None
        if info is not None:
            operands = [np.broadcast_to(np.zeros((), np.int8), info[1])]
        elif all(name in constants for name in node.input if name):
            operands = [constants[name] for name in node.input if name]
        else:
            continue
        results = _run(node, operands, opsets)
        for name, array in zip(node.output, results, strict=False):
            computed[name] = array
            if array.size <= _MOST_ELEMENTS:
                constants[name] = array
    return computed


def _is_small(tensor: TensorProto) -> bool:
    return tensor.data_location != TensorProto.EXTERNAL and math.prod(tensor.dims) <= _MOST_ELEMENTS


def _run(node: onnx.NodeProto, operands: list[Array], opsets: Mapping[str, int]) -> list[Array]:
    """A node's results; none when it cannot be computed, or they would be large."""
    from onnx.reference import ReferenceEvaluator

    if _asks_for_much(node.op_type, operands):
        return []
    try:
        evaluator = ReferenceEvaluator(node, opsets=dict(opsets))
        names = [name for name in node.input if name]
        return [np.asarray(result) for result in evaluator.run(None, dict(zip(names, operands, strict=True)))]
    except Exception:  # whatever operands of strangers make it throw: the result is not known, then
        return []


def _asks_for_much(kind: str, operands: list[Array]) -> bool:
    """Whether a node's operands say how large its result is to be, and that is very large."""
    with np.errstate(all="ignore"):
        if kind == "Range":
            first, last, step = (float(operand.ravel()[0]) for operand in operands)
            return not abs(last - first) <= abs(step) * _MOST_ELEMENTS
        if kind in {"ConstantOfShape", "Expand", "Tile"}:
            sizes = map(int, operands[-1].ravel())
            return math.prod(sizes) * (1 if kind == "ConstantOfShape" else operands[0].size) > _MOST_ELEMENTS**2
    return False


def _replace(model: onnx.ModelProto, computed: Mapping[str, Array]) -> None:
    """Makes weights of what was computed."""
    kept = [node for node in model.graph.node if not all(name in computed for name in node.output)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in computed.items())


def fix_batch(infos: Iterable[onnx.ValueInfoProto], batch: int) -> None:
    """Sets the batch size of inputs that leave it open."""
    for info in infos:
        for size in info.type.tensor_type.shape.dim[:1]:
            if size.dim_param == BATCH_NAME:
                size.dim_value = batch


def is_fixed(size: onnx.TensorShapeProto.Dimension) -> bool:
    """Whether a declared size is a number; some write -1 for one that is open."""
    return size.HasField("dim_value") and size.dim_value >= 0
