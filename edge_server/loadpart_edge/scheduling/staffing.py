"""How many workers a backlog calls for."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_CLEAR_SECONDS = 1.0
"""In which the jobs that wait should be done."""

_FULL = 0.7
"""Share of the workers that are busy when one more is of use: beyond it, waiting grows quickly with the load."""


class Staffing:
    """Wants more workers as soon as jobs wait, and fewer when they were not needed for a while."""

    def __init__(
        self, least: int, most: int, down_after_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Makes one.

        Args:
            least: Workers that there always are to be.
            most: Workers that there are to be at most.
            down_after_seconds: How long fewer must have been enough before there are to be fewer.
            clock: What tells the time, in seconds.
        """
        self._least, self._most = least, most
        self._down_after_seconds = down_after_seconds
        self._clock = clock
        self._needed: deque[tuple[float, int]] = deque()  # when, and how many; falling, the greatest first

    def wanted(self, busy: float, waiting_seconds: float) -> int:
        """How many workers there are to be now: the most that were needed at a time lately.

        Args:
            busy: Workers that run jobs, on average over some seconds.
            waiting_seconds: Predicted seconds of the jobs that wait, for one worker.
        """
        now = self._clock()
        needed = math.ceil((busy + waiting_seconds / _CLEAR_SECONDS) / _FULL)
        while self._needed and self._needed[-1][1] <= needed:
            self._needed.pop()
        self._needed.append((now, needed))
        while now - self._needed[0][0] > self._down_after_seconds:
            self._needed.popleft()
        return min(max(self._needed[0][1], self._least), self._most)
