"""How loaded the server is: slow-down, backlog, devices, processor and GPU utilisation."""

from __future__ import annotations

import math
import statistics
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import psutil

from loadpart_common.wire import BACKLOG_WINDOW_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

_FRESH_SECONDS = 1.0
_LEAST_READINGS = 3
_MOST_READINGS = 32
_STALE_SECONDS = 10.0
_LONG_WINDOW_SECONDS = 5.0
_ACTIVE_SECONDS = 10.0
_FULL = 0.95  # an occupancy beyond which the mean of some seconds is too coarse to divide by what is left


class SlowDown:
    """Measured over predicted time of tails, or of a canary that is run when there are none, in the recent past.

    The median of the last second's readings, or of the last three when that second had fewer: enough to pass over one
    odd run, few enough to follow a change within three. Without any reading for long it is 1 again.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._readings: deque[tuple[float, float]] = deque(maxlen=_MOST_READINGS)
        self._median = 1.0
        self._until = math.inf

    def record(self, predicted: float, measured: float) -> None:
        """Notes what a tail was predicted to take and what it took, in seconds."""
        if predicted > 0:
            self._readings.append((self._clock(), measured / predicted))
            self._refresh()

    @property
    def value(self) -> float:
        """The slow-down, at least 1: a lucky run makes no faster server."""
        if self._clock() > self._until:
            self._refresh()
        return self._median

    @property
    def age_seconds(self) -> float:
        """Seconds since the last reading; infinite before the first."""
        return self._clock() - self._readings[-1][0] if self._readings else math.inf

    def _refresh(self) -> None:
        """Drops what has aged; the median is kept, since it is read several times as often as it changes."""
        now = self._clock()
        while self._readings and now - self._readings[0][0] > (
            _FRESH_SECONDS if len(self._readings) > _LEAST_READINGS else _STALE_SECONDS
        ):
            self._readings.popleft()
        self._median = max(1.0, statistics.median(ratio for _, ratio in self._readings)) if self._readings else 1.0
        self._until = self._readings[0][0] + _FRESH_SECONDS if self._readings else math.inf


class TimeMean:
    """Mean over time of a figure that falls at a steady slope, to no less than 0, between the moments when it jumps.

    An exponential window: the same weight to each moment, not to each change.
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
    def externality_seconds(self) -> float:
        """Waiting that one more job would cause to others.

        It delays every job that comes before the queue is next empty: that takes backlog / (1 - occupancy) on average,
        and the share `occupancy` of it goes to others.
        """
        occupancy = min(self._occupancy.mean, _FULL)
        return self._longer.mean * occupancy / (1 - occupancy)


class ActiveDevices:
    """Counts the devices that sent a request lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen_at: OrderedDict[str, float] = OrderedDict()  # by peer, the least lately seen first

    def seen(self, peer: str) -> None:
        """Notes a request of a peer's."""
        self._seen_at[peer] = self._clock()
        self._seen_at.move_to_end(peer)

    @property
    def count(self) -> int:
        """How many there are."""
        limit = self._clock() - _ACTIVE_SECONDS
        while self._seen_at and next(iter(self._seen_at.values())) < limit:
            self._seen_at.popitem(last=False)
        return len(self._seen_at)


class Utilisation:
    """Shares of processors and GPUs in use since the last look."""

    def __init__(self) -> None:
        psutil.cpu_percent(interval=None)  # the first reading has nothing to compare with
        self._gpus = _open_gpus()

    def cpu(self) -> float:
        """Share of the processor cores in use, 0 to 1."""
        return min(1.0, psutil.cpu_percent(interval=None) / 100)

    def gpu(self) -> float | None:
        """Share of the busiest GPU in use, 0 to 1; None where there is none."""
        if not self._gpus:
            return None
        import pynvml

        try:
            return max(float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) for gpu in self._gpus) / 100
        except pynvml.NVMLError:
            return None


def _open_gpus() -> list[object]:
    import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # no driver, no GPU
        return []
