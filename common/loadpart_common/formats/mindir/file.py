"""A MindIR file, mapped into memory: its structure is parsed, its weights stay in the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadpart.mindir.v1 import mindir_pb2
from loadpart_common.errors import ModelError
from loadpart_common.formats.mapped_file import MappedFile
from loadpart_common.formats.mindir.dtypes import DTYPE_BY_NUMBER
from loadpart_common.protobuf_fields import WireError, fields, merge

if TYPE_CHECKING:
    from pathlib import Path

    from loadpart_common.tensors import Array

_MODEL_GRAPH = mindir_pb2.Model.GRAPH_FIELD_NUMBER
_GRAPH_PARAMETER = mindir_pb2.Graph.PARAMETER_FIELD_NUMBER
_TENSOR_RAW_DATA = mindir_pb2.Tensor.RAW_DATA_FIELD_NUMBER


@dataclass(frozen=True, slots=True)
class Weight:
    """The place of a weight's elements in a file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class ModelFile(MappedFile):
    """A MindIR file.

    Attributes:
        structure: The message without the elements of its weights.
        weights: The place of each weight, by its name in the file (`GRAPH:NAME`).
    """

    def __init__(self, path: Path) -> None:
        """Opens a file and parses its structure.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelError: The file is not MindIR, is cut short, or keeps its weights in other files.
        """
        super().__init__(path)
        self.structure = mindir_pb2.Model()
        self.weights: dict[str, Weight] = {}
        try:
            self._parse()
        except WireError as error:
            self.close()
            raise ModelError(f"{path} is not a MindIR file, or it is damaged: {error}") from error
        if not self.structure.graph.node:
            self.close()
            raise ModelError(f"{path} is not a MindIR file, or it is damaged: it holds no graph")

    def read_weight(self, name: str) -> Array:
        """A copy of a weight's elements.

        Raises:
            ModelError: The file has been written to since it was opened.
        """
        if self._state() != self.identity:
            raise ModelError(f"{self.path} has been changed while it is in use")
        weight = self.weights[name]
        count = math.prod(weight.shape)
        return np.frombuffer(self._map, weight.dtype, count, weight.offset).reshape(weight.shape).copy()

    def _parse(self) -> None:
        """Parses all but the elements of the weights: these are most of the file, and parsing would copy them twice."""
        with memoryview(self._map) as view:
            for number, start, value, end in fields(view, 0, len(view)):
                if number == _MODEL_GRAPH:
                    self._parse_graph(view, value, end)
                else:
                    merge(self.structure, bytes(view[start:end]))

    def _parse_graph(self, view: memoryview, start: int, end: int) -> None:
        for number, field_start, value, field_end in fields(view, start, end):
            if number == _GRAPH_PARAMETER:
                self._parse_parameter(view, value, field_end)
            else:
                merge(self.structure.graph, bytes(view[field_start:field_end]))

    def _parse_parameter(self, view: memoryview, start: int, end: int) -> None:
        tensor = self.structure.graph.parameter.add()
        where = (start, start)
        for number, field_start, value, field_end in fields(view, start, end):
            if number == _TENSOR_RAW_DATA:
                where = (value, field_end)
            else:
                merge(tensor, bytes(view[field_start:field_end]))
        if tensor.HasField("external_data"):
            raise ModelError(
                f"{self.path}: weight {tensor.name!r} is kept in another file; export a model with its weights inside"
            )
        dtype = DTYPE_BY_NUMBER.get(tensor.data_type)
        if dtype is None:
            raise ModelError(f"{self.path}: weight {tensor.name!r} has the unknown element type {tensor.data_type}")
        shape = tuple(tensor.dims)
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if where[1] - where[0] != nbytes:
            raise ModelError(
                f"{self.path}: weight {tensor.name!r} of shape {list(shape)} and type {dtype} should have {nbytes} "
                f"bytes, but it has {where[1] - where[0]}"
            )
        self.weights[tensor.name] = Weight(dtype, shape, where[0], nbytes)
