"""What a model format is to the rest of the project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Hashable
    from pathlib import Path

    from loadpart_common.graph import Graph, Segment


class OpenModel(Protocol):
    """A model's file, opened. An engine that takes the format may use more of it than is named here."""

    @property
    def identity(self) -> Hashable:
        """What tells the file apart from other files, and from what it was before a change."""

    @property
    def nbytes(self) -> int:
        """Size of the file in bytes."""

    @property
    def graph(self) -> Graph:
        """The network.

        Raises:
            ModelError: The file holds what cannot be cut; the message names the node.
        """

    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal."""

    def write_segment(self, segment: Segment, batch: int) -> bytes:
        """A segment as a model of its own, in this format, for `batch` items; weights may be left empty."""

    def close(self) -> None:
        """Gives the file back."""


class ModelFormat(Protocol):
    """A format of model files.

    Attributes:
        name: What manifests and the protocol call it.
        suffix: How its files' names end, such as `.mindir`.
    """

    name: str
    suffix: str

    def open(self, path: Path) -> OpenModel:
        """Opens a file.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelError: It is damaged, or of another format.
        """
