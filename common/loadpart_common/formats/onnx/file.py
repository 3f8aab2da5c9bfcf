"""An ONNX file, mapped into memory: its structure is parsed, large weights stay where they are."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto

from loadpart_common.errors import ModelError
from loadpart_common.formats.mapped_file import MappedFile
from loadpart_common.formats.onnx_program import leave_in_file, place_in_file
from loadpart_common.protobuf_fields import WireError, fields, merge

if TYPE_CHECKING:
    from pathlib import Path

_MODEL_GRAPH = onnx.ModelProto.GRAPH_FIELD_NUMBER
_GRAPH_INITIALIZER = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_TENSOR_RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER

_SMALL_BYTES = 1024
"""Weights that are smaller are part of the structure: shapes are computed from them."""


class OnnxFile(MappedFile):
    """An ONNX file.

    Attributes:
        structure: The model; its large weights are given by their places in this file.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file and parses its structure.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelError: The file is not ONNX, is cut short, or has weights where they must not be.
        """
        super().__init__(path)
        self.structure = onnx.ModelProto()
        try:
            self._parse()
            self._check()
        except WireError as error:
            self.close()
            raise ModelError(f"{path} is not an ONNX file, or it is damaged: {error}") from error
        except ModelError:
            self.close()
            raise

    def _parse(self) -> None:
        with memoryview(self._map) as view:
            for number, start, value, end in fields(view, 0, len(view)):
                if number != _MODEL_GRAPH:
                    merge(self.structure, bytes(view[start:end]))
                    continue
                for inner, inner_start, inner_value, inner_end in fields(view, value, end):
                    if inner == _GRAPH_INITIALIZER:
                        self._parse_weight(view, inner_value, inner_end)
                    else:
                        merge(self.structure.graph, bytes(view[inner_start:inner_end]))

    def _parse_weight(self, view: memoryview, start: int, end: int) -> None:
        tensor = self.structure.graph.initializer.add()
        for number, field_start, value, field_end in fields(view, start, end):
            if number == _TENSOR_RAW_DATA and field_end - value > _SMALL_BYTES:
                leave_in_file(tensor, self.path.name, value, field_end - value)
            else:
                merge(tensor, bytes(view[field_start:field_end]))

    def _check(self) -> None:
        """Refuses what is no network, comes from the future, or has weights outside of the file.

        Raises:
            ModelError: See above.
        """
        if not self.structure.graph.node:
            raise ModelError(f"{self.path} is not an ONNX file, or it is damaged: it holds no graph")
        newest = onnx.defs.onnx_opset_version()
        for opset in self.structure.opset_import:
            if opset.domain in {"", "ai.onnx"} and opset.version > newest:
                raise ModelError(
                    f"{self.path} uses version {opset.version} of ONNX's operators: expected at most {newest}"
                )
        for tensor in self.structure.graph.initializer:
            place = place_in_file(tensor)
            if place is not None and (location := place.get("location", "")) != self.path.name:
                raise ModelError(
                    f"{self.path}: the weight {tensor.name!r} is kept in another file "
                    f"({os.path.basename(location)!r}): expected all in one, as 'loadpart-edge add' writes it"
                )
