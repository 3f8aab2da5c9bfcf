"""What a server says, checked: a device believes no figure that cannot be one."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadpart.v1 import offload_pb2
    from loadpart_common.tensors import Array

_MOST_SECONDS = 3600.0
_MOST_SLOW_DOWN = 1e6

log = logging.getLogger(__name__)


class Doubts:
    """Counts what was not believed of a server, and logs the first time of each kind. Thread-safe."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._told: set[str] = set()
        self.count = 0

    def add(self, what: str) -> None:
        """Notes that something was not believed.

        Args:
            what: What it was, such as `status`.
        """
        with self._lock:
            self.count += 1
            is_new = what not in self._told
            self._told.add(what)
        if is_new:
            log.warning("%s sends a %s that cannot be true; it is ignored", self._server, what)


def is_seconds(value: float, most: float = _MOST_SECONDS) -> bool:
    """Whether a figure can be seconds: not negative, not beyond `most`, and a number at all."""
    return 0.0 <= value <= most


def is_status(status: offload_pb2.ServerStatus) -> bool:
    """Whether a status can be one."""
    return (
        is_seconds(status.backlog_seconds)
        and is_seconds(status.mean_backlog_seconds)
        and is_seconds(status.externality_seconds)
        and is_seconds(status.dispatch_seconds)
        and 0.0 < status.slow_down <= _MOST_SLOW_DOWN
    )


def are_tail_seconds(seconds: Array, layers: int) -> bool:
    """Whether figures can be the seconds of each cut's tail of a network with so many layers."""
    return seconds.shape == (layers + 1,) and bool(((seconds >= 0) & (seconds <= _MOST_SECONDS)).all())
