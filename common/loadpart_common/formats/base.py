"""The interface of a model format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from loadpart_common.files import FileState
    from loadpart_common.formats.onnx.program import OnnxProgram
    from loadpart_common.graph import Graph


class OpenModel(Protocol):
    """An open model file. Engines for one format may use more of its class than this interface."""

    @property
    def identity(self) -> FileState:
        """State of the file when it was opened: different for every file."""

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""

    @property
    def graph(self) -> Graph:
        """The network.

        Raises:
            ModelError: The network has a node that cannot be cut; the message names it.
        """

    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal."""

    def onnx(self) -> OnnxProgram:
        """The network as ONNX.

        Raises:
            ModelError: An operator has no translation; the message names it.
        """

    def close(self) -> None:
        """Closes the file."""


class ModelFormat(Protocol):
    """A format of model files.

    Attributes:
        name: Its name in manifests and in the protocol.
        suffix: Suffix of its files, such as `.mindir`.
    """

    name: str
    suffix: str

    def open(self, path: Path) -> OpenModel:
        """Opens a file.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelError: The file is damaged, or of another format.
        """
