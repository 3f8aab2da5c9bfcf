"""Knows whether this process is a fork of one that used what does not survive a fork: gRPC, or an engine.

A fork copies the locks and the connections of both, and none of their threads. Whoever uses them in the child waits for
ever, and ends the parent's connections.
"""

from __future__ import annotations

import os

from loadpart_common.errors import SettingsError

ADVICE = 'start processes with multiprocessing\'s "spawn", or make clients only in the children'
"""What to do instead, for messages."""


class _Process:
    used = False  # whether it, or a process that it is a fork of, has used one of them
    is_fork = False  # whether it is a fork of a process that had


def begin_use() -> None:
    """Takes in that this process uses gRPC or an engine.

    Raises:
        SettingsError: It is a fork of a process that did.
    """
    if _Process.is_fork:
        raise SettingsError(f"this process is a fork of one that had a client, and cannot have one: {ADVICE}")
    _Process.used = True


def is_fork() -> bool:
    """Whether this process is a fork of one that used gRPC or an engine."""
    return _Process.is_fork


def _forked() -> None:
    _Process.is_fork = _Process.used


os.register_at_fork(after_in_child=_forked)
