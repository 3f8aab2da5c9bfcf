"""The interface of a model format."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol

from loadpart_common.errors import ModelNotFoundError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from loadpart_common.files import FileState
    from loadpart_common.formats.onnx_program import OnnxProgram
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


class ModelFormat(ABC):
    """A format of model files.

    Attributes:
        name: Its name in manifests and in the protocol.
        suffix: Suffix of its files, such as `.mindir`.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]

    @abstractmethod
    def open(self, path: Path) -> OpenModel:
        """Opens a file.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelError: The file is damaged, or of another format.
        """

    def bring_in(self, source: Path, target: Path, shapes: Mapping[str, Sequence[int]]) -> None:
        """Copies a model into a store, where a model is one file.

        Args:
            source: The model.
            target: The file to write.
            shapes: Sizes by input, for inputs whose sizes the model leaves open; `BATCH` stands for the batch size.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelError: The model cannot be one file; the message says why.
            SettingsError: The model has no such input, or one with other sizes.
        """
        if shapes:
            raise SettingsError(f"shape: models of the format {self.name} have inputs of fixed sizes")
        try:
            shutil.copyfile(source, target)
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"no model file at {source}") from error
