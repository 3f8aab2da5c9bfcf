"""The interface of the MindIR format for the rest of the project."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from loadpart_common.formats.base import ModelFormat
from loadpart_common.formats.mindir.file import ModelFile
from loadpart_common.formats.mindir.graph_builder import build_graph
from loadpart_common.formats.mindir.program import Program
from loadpart_common.formats.mindir.segment import write_segment

if TYPE_CHECKING:
    from pathlib import Path

    from loadpart_common.formats.onnx_program import OnnxProgram
    from loadpart_common.graph import Graph, Segment


class MindIRModel(ModelFile):
    """A MindIR file, opened; see `formats.base.OpenModel`.

    Attributes:
        program: The nodes of the file; interpreted at the first access.
    """

    @cached_property
    def program(self) -> Program:
        """The nodes, interpreted.

        Raises:
            ModelError: Some nodes are not supported; the message names one.
        """
        return Program(self.structure)

    @cached_property
    def graph(self) -> Graph:
        """The network.

        Raises:
            ModelError: See `program` and `build_graph`.
        """
        return build_graph(self.program)

    def write_segment(self, segment: Segment, batch: int) -> bytes:
        """A segment as a MindIR model; its weights are named but empty."""
        return write_segment(self.program, self.graph, segment, batch).SerializeToString()

    def onnx(self) -> OnnxProgram:
        """The network as ONNX, its weights left in this file.

        Raises:
            ModelError: An operator has no translation; the message names it.
        """
        return self._translated

    @cached_property
    def _translated(self) -> OnnxProgram:
        from loadpart_common.formats.mindir.operators import TRANSLATIONS
        from loadpart_common.formats.mindir.translator import Translator

        return Translator(self, self.program, self.graph, TRANSLATIONS).translate()


class MindIR(ModelFormat):
    """See `formats.base.ModelFormat`."""

    name = "mindir"
    suffix = ".mindir"

    def open(self, path: Path) -> MindIRModel:
        """Opens a file."""
        return MindIRModel(path)
