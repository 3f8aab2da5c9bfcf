"""Reading files that others may have put there, and writing files so that nobody reads half of one."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import IO, TypeAlias

MOST_MODEL_BYTES = 16 << 30
"""Largest model file that is opened or fetched."""

FileState: TypeAlias = tuple[int, int, int, int]
"""Device, inode, time of the last change in nanoseconds, and size: different for every file, and after every change."""


def cache_folder(name: str) -> Path:
    """A folder of this software in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loadpart" / name


def file_state(file: IO[bytes] | Path) -> FileState | None:
    """The state of an open file, or of what lies at a path; None when nothing does."""
    try:
        status = file.lstat() if isinstance(file, Path) else os.fstat(file.fileno())
    except OSError:
        return None
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)


def open_regular(path: Path, most_bytes: int = MOST_MODEL_BYTES) -> IO[bytes]:
    """Opens a file for reading, if it is a regular file of a bearable size.

    What was checked is what is read, since the checks look at the open file. Links are not followed, and nothing that
    blocks, such as a pipe, is waited for.

    Args:
        path: The file.
        most_bytes: The largest size.

    Raises:
        OSError: It is missing, a link, not a regular file, too large, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_size <= most_bytes:
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(f"{path}: expected a regular file of at most {most_bytes} bytes")


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The bytes of a small file, opened as `open_regular` does.

    Raises:
        OSError: See `open_regular`.
    """
    with open_regular(path, most_bytes) as file:
        return file.read(most_bytes + 1)[:most_bytes]


def write_atomically(path: Path, data: bytes, mode: int = 0o644, *, keeps_owner: bool = False) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part.

    Args:
        path: The file.
        data: What is in it afterwards.
        mode: Who may read and write it, whatever the umask.
        keeps_owner: Whether a file that is replaced keeps its owner, where this process may give files away. What root
            writes then stays readable for a daemon; where others may put files, they would be given what is written.

    Raises:
        OSError: It cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if keeps_owner:
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    before = path.lstat()
                    os.fchown(descriptor, before.st_uid, before.st_gid)
            # The file begins with mode 0600 and is opened up at the end, so that a secret is never readable for others.
            os.fchmod(descriptor, mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
