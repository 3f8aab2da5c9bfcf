"""The model formats by name. A new format is a folder beside this file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.plugins import Registry

if TYPE_CHECKING:
    from pathlib import Path

    from loadpart_common.formats.base import ModelFormat

FORMATS: Registry[ModelFormat] = Registry("format")


def _mindir() -> ModelFormat:
    from loadpart_common.formats.mindir.format import MindIR

    return MindIR()


def _onnx() -> ModelFormat:
    from loadpart_common.formats.onnx.format import Onnx

    return Onnx()


FORMATS.register("mindir", _mindir)
FORMATS.register("onnx", _onnx)


def format_of(path: Path) -> ModelFormat | None:
    """The format of a file, by its suffix; None when no format has this suffix."""
    return next((FORMATS[name] for name in FORMATS if path.name.endswith(FORMATS[name].suffix)), None)
