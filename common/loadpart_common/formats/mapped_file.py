"""A model file that is mapped into memory, so that its weights need not be read before they are used."""

from __future__ import annotations

import hashlib
import mmap
from typing import TYPE_CHECKING, Self

from loadpart_common.errors import ModelError, ModelNotFoundError
from loadpart_common.files import FileState, file_state, open_regular

if TYPE_CHECKING:
    from pathlib import Path


class MappedFile:
    """A model file, opened once: what was checked is what is read.

    Attributes:
        path: The file.
        identity: State of the file when it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file.

        Raises:
            ModelNotFoundError: There is no such file.
            ModelError: It cannot be read.
        """
        self.path = path
        try:
            self._file = open_regular(path)
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"no model file at {path}") from error
        except OSError as error:
            raise ModelError(f"cannot read the model file: {error}") from error
        self.identity = self._state()
        try:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            self._file.close()
            raise ModelError(f"cannot read model file {path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self._map)

    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        with memoryview(self._map) as view:
            return hashlib.sha256(view).hexdigest()

    def release_pages(self) -> None:
        """Lets the system drop pages of the file that were read from memory."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmaps the file."""
        self._map.close()
        self._file.close()

    def _state(self) -> FileState:
        state = file_state(self._file)
        assert state is not None  # the file is open
        return state
