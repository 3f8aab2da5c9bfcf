"""An ONNX file as the rest of the project sees it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from loadpart_common.formats.onnx.file import OnnxFile
from loadpart_common.formats.onnx.graph_builder import Built, build

if TYPE_CHECKING:
    from loadpart_common.formats.onnx_program import OnnxProgram
    from loadpart_common.graph import Graph


class OnnxModel(OnnxFile):
    """An ONNX file, opened; see `formats.base.OpenModel`."""

    @cached_property
    def _built(self) -> Built:
        return build(self.structure, self.path.parent, self.path.name)

    @property
    def graph(self) -> Graph:
        """The network.

        Raises:
            ModelError: See `graph_builder.build`.
        """
        return self._built.graph

    def onnx(self) -> OnnxProgram:
        """The network as it is, its weights left in this file."""
        return self._built.program
