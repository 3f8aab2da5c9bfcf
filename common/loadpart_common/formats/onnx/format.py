"""The interface of the ONNX format for the rest of the project."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from loadpart_common.formats.onnx.model import OnnxModel


class Onnx:
    """See `formats.base.ModelFormat`."""

    name = "onnx"
    suffix = ".onnx"

    def open(self, path: Path) -> OnnxModel:
        """Opens a file.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelError: The file is damaged, or what reads such files is not installed.
        """
        try:
            from loadpart_common.formats.onnx.model import OnnxModel
        except ModuleNotFoundError as error:
            raise ModelError(
                f"{error.name} is missing, which reads ONNX files: expected 'pip install loadpart[onnxruntime]'"
            ) from error
        return OnnxModel(path)
