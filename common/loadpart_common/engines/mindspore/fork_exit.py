"""Lets a fork of a process that has used MindSpore end.

MindSpore ends its threads when the process exits. A fork does not have them, and would wait for them for ever.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os

_libc = ctypes.CDLL(None)


@functools.cache
def prepare() -> None:
    """Has every fork of this process, from now on, exit without MindSpore's clean-up."""
    os.register_at_fork(after_in_child=_skip_clean_up)


def _skip_clean_up() -> None:
    atexit.unregister(_CleanUp())  # type: ignore[arg-type]  # it only compares
    # What is registered last is called first: after Python's own end, and before the destructors of libraries.
    _libc.on_exit(_libc._exit, None)


class _CleanUp:
    """Equals the function that MindSpore's C++ part has registered for the exit; nothing else tells it."""

    def __eq__(self, function: object) -> bool:
        return type(getattr(function, "__self__", None)).__name__ == "PyCapsule"

    __hash__ = None  # type: ignore[assignment]
