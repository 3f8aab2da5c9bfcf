"""Makes an ONNX model fit for a model store: all in one file, and its inputs of fixed sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import load_external_data_for_model

from loadpart_common.errors import ModelError, ModelNotFoundError, SettingsError
from loadpart_common.formats.onnx.shapes import is_fixed
from loadpart_common.formats.onnx_program import place_in_file
from loadpart_common.tensors import BATCH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_MOST_BYTES = 2**31 - 1
"""What a protobuf message can hold at most."""


def write_alone(source: Path, target: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Writes a model with weights that lie in files beside it as one file.

    Args:
        source: The model.
        target: The file to write.
        shapes: Sizes by input, for inputs whose sizes the model leaves open; `BATCH` stands for the batch size.

    Raises:
        ModelNotFoundError: There is no such file.
        ModelError: It is no ONNX file, is larger than 2 GB, or has weights outside of its folder.
        SettingsError: The model has no such input, or one with other sizes.
    """
    try:
        _check_size(source, source.stat().st_size)
        model = onnx.load(source, load_external_data=False)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"no model file at {source}") from error
    except (DecodeError, UnicodeDecodeError, OSError) as error:
        raise ModelError(f"{source} is not an ONNX file, or it is damaged: {error}") from error
    _check_size(source, sum(path.stat().st_size for path in (source, *_files_beside(model, source))))
    try:
        load_external_data_for_model(model, str(source.parent))
    except Exception as error:  # the package's errors have no base class of their own
        raise ModelError(f"the weights of {source} cannot be read: {error}") from error
    for name, sizes in shapes.items():
        _fix(model, name, sizes)
    target.write_bytes(model.SerializeToString())


def _check_size(source: Path, nbytes: int) -> None:
    if nbytes > _MOST_BYTES:
        raise ModelError(f"{source} has {nbytes / 1e9:.1f} GB with its weights: expected at most 2 GB")


def _files_beside(model: onnx.ModelProto, source: Path) -> set[Path]:
    """The files with weights beside a model.

    Raises:
        ModelError: One is missing, or lies outside of the model's folder.
    """
    folder = source.parent.resolve()
    paths = set()
    for tensor in model.graph.initializer:
        place = place_in_file(tensor)
        if place is None:
            continue
        location = place.get("location", "")
        path = (folder / location).resolve()
        if not path.is_relative_to(folder) or not path.is_file():
            raise ModelError(
                f"{source}: the weight {tensor.name!r} is kept in {location!r}: expected a file beside the model"
            )
        paths.add(path)
    return paths


def _fix(model: onnx.ModelProto, name: str, sizes: Sequence[int]) -> None:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {info.name: info for info in model.graph.input if info.name not in weights}
    if name not in inputs:
        raise SettingsError(f"shape: the model has no input {name!r}: expected one of {', '.join(inputs)}")
    declared = inputs[name].type.tensor_type.shape.dim
    told = ",".join(str(each.dim_value) if is_fixed(each) else each.dim_param or "?" for each in declared)
    fixed = [size if is_fixed(each) else None for size, each in zip(sizes, declared, strict=False)]
    if len(sizes) != len(declared) or any(
        size is not None and size != each.dim_value for size, each in zip(fixed, declared, strict=True)
    ):
        got = ",".join("N" if size == BATCH else str(size) for size in sizes)
        raise SettingsError(f"shape: the model declares {name}={told}, got {got}")
    for size, each in zip(sizes, declared, strict=True):
        if size == BATCH:
            each.dim_param = "N"
        else:
            each.dim_value = size
