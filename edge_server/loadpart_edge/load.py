"""How loaded the server is: slow-down, processor and GPU utilisation."""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

_WINDOW_SECONDS = 5.0
_WINDOW_JOBS = 32


class SlowDown:
    """Measured over predicted tail time in the recent past.

    Readings age: when no tail has run for the length of the window it is 1 again, so that devices which turned to
    themselves come back and take a new reading.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._readings: deque[tuple[float, float]] = deque(maxlen=_WINDOW_JOBS)
        self._median = 1.0
        self._oldest = float("inf")

    def record(self, predicted: float, measured: float) -> None:
        """Notes what a tail was predicted to take and what it took, in seconds."""
        if predicted > 0:
            self._readings.append((self._clock(), measured / predicted))
            self._refresh()

    @property
    def value(self) -> float:
        """The slow-down: median of the window, and at least 1; a lucky run makes no faster server."""
        if self._clock() - self._oldest > _WINDOW_SECONDS:
            self._refresh()
        return self._median

    def _refresh(self) -> None:
        """Drops what has aged; the median is kept, since it is read several times as often as it changes."""
        limit = self._clock() - _WINDOW_SECONDS
        while self._readings and self._readings[0][0] < limit:
            self._readings.popleft()
        self._median = max(1.0, statistics.median(ratio for _, ratio in self._readings)) if self._readings else 1.0
        self._oldest = self._readings[0][0] if self._readings else float("inf")


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
