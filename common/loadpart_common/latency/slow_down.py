"""How much slower than predicted a machine is at the moment, and other figures of the recent past."""

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


class RecentMedian:
    """A figure of the recent past.

    The median of the last second's readings, or of the last few when that second had fewer. After some seconds without
    readings it returns to its least value, so that what was bad is tried again.
    """

    def __init__(
        self,
        least: float,
        clock: Callable[[], float] = time.monotonic,
        readings: int = 3,
        stale_seconds: float = _STALE_SECONDS,
    ) -> None:
        """Makes one.

        Args:
            least: What it is without readings, and at least.
            clock: What tells the time, in seconds.
            readings: How many the last few are: three pass over one odd run, and follow a change within three.
            stale_seconds: After which readings count no longer.
        """
        self._least = least
        self._fewest = readings
        self._clock = clock
        self._stale_seconds = stale_seconds
        self._readings: deque[tuple[float, float]] = deque(maxlen=_MOST_READINGS)
        self._median = least
        self._until = math.inf

    def add(self, reading: float) -> None:
        """Takes in a reading."""
        now = self._clock()
        self._readings.append((now, reading))
        self._refresh(now)

    @property
    def value(self) -> float:
        """The figure now."""
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
        readings = [reading for _, reading in self._readings]
        self._median = max(self._least, statistics.median(readings)) if readings else self._least

    def _expiry(self) -> float:
        """When the oldest reading has aged."""
        if not self._readings:
            return math.inf
        is_enough = len(self._readings) > self._fewest
        return self._readings[0][0] + (_FRESH_SECONDS if is_enough else self._stale_seconds)


class SlowDown(RecentMedian):
    """Measured over predicted time of what ran in the recent past; at least 1: a lucky run makes no faster machine."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, readings: int = 3) -> None:
        """Makes one; see `RecentMedian`."""
        super().__init__(1.0, clock, readings)

    def record(self, predicted: float, measured: float) -> None:
        """Notes what a run was predicted to take and what it took, in seconds."""
        if predicted > 0:
            self.add(measured / predicted)
