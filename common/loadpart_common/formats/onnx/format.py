"""The interface of the ONNX format for the rest of the project."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from loadpart_common.errors import ModelError
from loadpart_common.formats.base import ModelFormat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from loadpart_common.formats.onnx.model import OnnxModel


class Onnx(ModelFormat):
    """See `formats.base.ModelFormat`."""

    name = "onnx"
    suffix = ".onnx"

    def open(self, path: Path) -> OnnxModel:
        """Opens a file.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelError: The file is damaged, or what reads such files is not installed.
        """
        with _installed():
            from loadpart_common.formats.onnx.model import OnnxModel
        return OnnxModel(path)

    def bring_in(self, source: Path, target: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        """Copies a model together with its weights in other files; see `ModelFormat.bring_in`."""
        with _installed():
            from loadpart_common.formats.onnx.importing import write_alone
        write_alone(source, target, shapes)


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{error.name} is missing, which reads ONNX files: expected 'pip install loadpart[onnxruntime]'"
        ) from error
