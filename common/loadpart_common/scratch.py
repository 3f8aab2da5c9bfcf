"""Temporary folders that do not outlive their process, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Self

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ScratchFolder:
    """A new temporary folder, which only its owner's user may enter.

    The owner holds a lock on the folder for as long as it lives. The kernel drops the lock of a killed process, and so
    whoever makes a folder of the same prefix next, in the same place, finds it abandoned and removes it.

    Attributes:
        path: The folder.
    """

    def __init__(self, prefix: str, place: Path | None = None) -> None:
        """Removes abandoned folders of a prefix, and makes a folder.

        Args:
            prefix: How the folder's name starts. Nothing else in the place may be named like this.
            place: Where it is made; `tempfile.gettempdir` when not given.

        Raises:
            OSError: The folder cannot be made.
        """
        remove_abandoned(prefix, place)
        self.path, descriptor = _make(prefix, place)
        self._finalizer = weakref.finalize(self, _remove, self.path, descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes the folder with all that is in it, as far as the process may; does nothing the second time."""
        self._finalizer()


def remove_abandoned(prefix: str, place: Path | None = None) -> None:
    """Removes this user's scratch folders of a prefix, in a place, whose owners are gone.

    Folders that cannot be removed stay; whoever comes next tries again.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(place or tempfile.gettempdir(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in os.listdir(descriptor):
                if name.startswith(prefix):
                    _remove_if_abandoned(descriptor, name)
        finally:
            os.close(descriptor)


def _make(prefix: str, place: Path | None) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        try:
            descriptor = os.open(path, _FOLDER)
        except FileNotFoundError:
            continue
        if _lock(descriptor) and _is_at(path, descriptor):
            return path, descriptor
        # Another process took the folder for abandoned, in the moment before it was locked.
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the lock of a folder could be had, or there are no locks where it is: then none is ever abandoned."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether an open folder is still the one at a path."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_if_abandoned(place: int, name: str) -> None:
    with contextlib.suppress(OSError):  # it is gone, not a folder, in use, or another user's
        descriptor = os.open(name, _FOLDER, dir_fd=place)
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():  # root, too, leaves the folders of others alone
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(name, ignore_errors=True, dir_fd=place)
        finally:
            os.close(descriptor)


def _remove(path: Path, descriptor: int) -> None:
    shutil.rmtree(path, ignore_errors=True)
    os.close(descriptor)  # only now, so that nobody else removes it at the same time
