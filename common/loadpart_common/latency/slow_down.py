"""How much slower than predicted a machine is at the moment."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_FRESH_SECONDS = 1.0
_MOST_READINGS = 32
_STALE_SECONDS = 10.0


class SlowDown:
    """Measured over predicted time of what ran in the recent past.

    The median of the last second's readings, or of the last few when that second had fewer. After ten seconds without
    readings it returns to 1, so that the machine is tried again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, readings: int = 3) -> None:
        """Makes one.

        Args:
            clock: What tells the time, in seconds.
            readings: How many the last few are: three pass over one odd run, and follow a change within three.
        """
        self._least = readings
        self._clock = clock
        self._readings: deque[tuple[float, float]] = deque(maxlen=_MOST_READINGS)
        self._median = 1.0
        self._until = math.inf

    def record(self, predicted: float, measured: float) -> None:
        """Notes what a run was predicted to take and what it took, in seconds."""
        if predicted > 0:
            now = self._clock()
            self._readings.append((now, measured / predicted))
            self._refresh(now)

    @property
    def value(self) -> float:
        """The slow-down, at least 1: a lucky run makes no faster machine."""
        if (now := self._clock()) > self._until:
            self._refresh(now)
        return self._median

    @property
    def age_seconds(self) -> float:
        """Seconds since the last reading; infinite before the first."""
        return self._clock() - self._readings[-1][0] if self._readings else math.inf

    def _refresh(self, now: float) -> None:
        """Drops what has aged; the median is kept, since it is read several times as often as it changes."""
        while now > (until := self._expiry()):
            self._readings.popleft()
        self._until = until
        self._median = max(1.0, statistics.median([ratio for _, ratio in self._readings])) if self._readings else 1.0

    def _expiry(self) -> float:
        """When the oldest reading has aged."""
        if not self._readings:
            return math.inf
        return self._readings[0][0] + (_FRESH_SECONDS if len(self._readings) > self._least else _STALE_SECONDS)
