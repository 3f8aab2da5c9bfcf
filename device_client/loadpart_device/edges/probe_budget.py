"""How much of the radio's time probes may take, whichever servers they go to."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHARE = 0.008
"""Of the link's time that probes may take; with small requests and statuses an idle link stays below 1 %."""

_CREDIT_SECONDS = 60.0
_TURN_SECONDS = 5.0  # after which a probe goes on beside another one, whose server may hang


class ProbeBudget:
    """One budget for all servers of a device. Thread-safe.

    Time that was not used for probing for up to a minute may be made up for, for instance when the link changes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._paid_until = clock()

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """A turn at the radio: two probes at once would each find the half of it."""
        is_taken = self._turn.acquire(timeout=_TURN_SECONDS)
        try:
            yield
        finally:
            if is_taken:
                self._turn.release()

    def pay(self, taken_seconds: float) -> float:
        """Takes in that a probe took up the link for so long; gives the seconds until the next one may."""
        with self._lock:
            now = self._clock()
            self._paid_until = max(self._paid_until, now - _CREDIT_SECONDS) + taken_seconds / SHARE
            return self._paid_until - now
