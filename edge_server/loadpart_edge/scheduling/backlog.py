"""Load accounts: the mean backlog, and the waiting that one more job would cause to others."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from loadpart_common.wire.limits import BACKLOG_WINDOW_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

_LONG_WINDOW_SECONDS = 5.0
_FULL = 0.95  # an occupancy beyond which the mean of some seconds is too coarse to divide by what is left


class TimeMean:
    """Mean over time of a figure that falls at a constant slope, never below 0, and jumps now and then.

    Moments are weighted by an exponential window, however many changes fall into them.
    """

    def __init__(
        self, window_seconds: float, slope: float = 0.0, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Makes a mean.

        Args:
            window_seconds: In which an old value's weight falls to a third.
            slope: By which the figure falls each second; 0 for one that stays.
            clock: What tells the time, in seconds.
        """
        self._window, self._slope, self._clock = window_seconds, slope, clock
        self._mean, self._value, self._since = 0.0, 0.0, clock()

    def changed(self, value: float) -> None:
        """Notes the figure from now on."""
        self._mean, self._value, self._since = self.mean, value, self._clock()

    @property
    def mean(self) -> float:
        """The mean."""
        passed = self._clock() - self._since
        if passed <= 0:
            return self._mean
        window, slope = self._window, self._slope
        falling = min(passed, self._value / slope) if slope else passed
        # The integral of (value - slope u) exp((u - passed) / window) / window over u from 0 to falling.
        first, last = math.exp(-passed / window), math.exp((falling - passed) / window)
        during = self._value * (last - first) - slope * ((falling - window) * last + window * first)
        return self._mean * first + during


class Backlog:
    """Means of the backlog, and what one more job would cost the others."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._lately = TimeMean(BACKLOG_WINDOW_SECONDS, 1.0, clock)
        self._longer = TimeMean(_LONG_WINDOW_SECONDS, 1.0, clock)
        self._occupancy = TimeMean(_LONG_WINDOW_SECONDS, 0.0, clock)

    def changed(self, seconds: float, occupancy: float) -> None:
        """Notes the backlog from now on, in seconds, and the share of the workers that run jobs."""
        self._lately.changed(seconds)
        self._longer.changed(seconds)
        self._occupancy.changed(occupancy)

    @property
    def mean_seconds(self) -> float:
        """Mean over the last third of a second."""
        return self._lately.mean

    @property
    def occupancy(self) -> float:
        """Share of the workers that run jobs, mean over some seconds."""
        return self._occupancy.mean

    @property
    def externality_seconds(self) -> float:
        """Waiting that one more job would cause to others.

        It delays every job that comes before the queue is next empty: that takes backlog / (1 - occupancy) on average,
        and the share `occupancy` of it goes to others.
        """
        occupancy = min(self.occupancy, _FULL)
        return self._longer.mean * occupancy / (1 - occupancy)
