"""Keeps MindSpore from taking Ctrl-C away from the application.

Whenever a graph runs, MindSpore replaces the process's handler of SIGINT by one that ends the process with SIGTERM: the
application gets no `KeyboardInterrupt`, and its `finally` blocks do not run. No setting prevents that. To restore the
handler after each run would not do, since an application that infers all the time is interrupted within a run.

So the call is diverted. A library finds the C function `sigaction` in its table of imported functions. That of the one
library of MindSpore which does all this, and calls `sigaction` for nothing else, gets a function that does nothing.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import sys
from pathlib import Path
from typing import Any

_LIBRARY = "libmindspore_common.so"

log = logging.getLogger(__name__)

_libc = ctypes.CDLL(None, use_errno=True)


def leave_to_python(folder: Path) -> None:
    """Has MindSpore, which is imported already, leave the handlers of signals alone; logs a warning when it cannot.

    Args:
        folder: MindSpore's folder.
    """
    library = (folder / "lib" / _LIBRARY).resolve()
    # It ignores what it is called with, and says 1; only -1 would be a failure of `sigaction`.
    harmless = _address(ctypes.pythonapi.Py_IsInitialized)
    try:
        if not _replace(library, _address(_libc.sigaction), harmless) and not _find(library, harmless):
            log.warning("Ctrl-C will end this process at once: in %s nothing installs MindSpore's handler", library)
    except OSError as error:
        log.warning("Ctrl-C will end this process at once: MindSpore's handler of it cannot be disabled (%s)", error)


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _replace(library: Path, old: int, new: int) -> bool:
    """Replaces one function by another among those that a library imports; gives whether it imported it.

    Raises:
        OSError: The system does not allow it.
    """
    entry = _find(library, old)
    if entry is None:
        return False
    page = ctypes.c_void_p(entry - entry % mmap.PAGESIZE)
    _protect(page, mmap.PROT_READ | mmap.PROT_WRITE)
    ctypes.c_size_t.from_address(entry).value = new
    _protect(page, mmap.PROT_READ)
    return True


def _find(library: Path, function: int) -> int | None:
    """Where the table of a library has a function; None when it does not."""
    wanted = function.to_bytes(ctypes.sizeof(ctypes.c_size_t), sys.byteorder)
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        addresses, rights, *_, path = line.split(maxsplit=5)
        if path == str(library) and rights.startswith("r--"):  # the loader has made the table read-only
            first, end = (int(address, 16) for address in addresses.split("-"))
            offset = ctypes.string_at(first, end - first).find(wanted)
            if offset >= 0:
                return first + offset
    return None


def _protect(page: ctypes.c_void_p, rights: int) -> None:
    if _libc.mprotect(page, ctypes.c_size_t(mmap.PAGESIZE), rights) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
