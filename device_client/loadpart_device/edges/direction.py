"""One direction of a link: its rate, and the burst of bytes that it lets through at once.

A request that carries n bytes is on the way for

    round trip + max(n - f, 0) * seconds per byte

f are the bytes that go through at once, since shapers and radios let a burst pass after a pause: a bucket of so many
bytes that fills again at the rate of the link (a token bucket). A short message therefore tells nothing of the
bandwidth, and a message right after a longer one tells it exactly, because the bucket is empty.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MEASURABLE_BYTES = 32 << 10
"""Fewer bytes fit into buffers on the way, and tell of the round trip, not of the bandwidth."""

TRANSFERS = 8
"""How many of the latest readings count."""

JITTER_SECONDS = 0.002
_SAME = 0.15
"""Readings within 15 % plus 2 ms belong to one link; two successive ones outside mean that the link has changed."""

_LARGEST_BURST_SHARE = 0.75
_LEAST_SECONDS_PER_BYTE = 1e-11  # 800 Gbit/s, below the resolution of a clock


class Direction:
    """Estimates the rate as a weighted median of the latest readings, and the burst from pairs of probes.

    Attributes:
        seconds_per_byte: The rate; None as long as it is unknown.
        probed: The rate that the last pair of probes told, in seconds a byte.
        deviation: See `LinkEstimator.deviation`.
        burst_bytes: Bytes that go through at once after a pause.
        emptied_at: When the bucket was last empty, on the estimator's clock.
    """

    def __init__(self) -> None:
        self.seconds_per_byte: float | None = None
        self.probed: float | None = None
        self.deviation = 0.0
        self.burst_bytes = 0.0
        self.emptied_at = float("-inf")
        self._readings: deque[tuple[float, float]] = deque(maxlen=TRANSFERS)  # seconds a byte, bytes

    def record(self, nbytes: int, seconds: float, idle_seconds: float) -> float | None:
        """Takes in a transfer.

        Args:
            nbytes: Its bytes.
            seconds: How long it took, without the round trip.
            idle_seconds: Between the end of the previous transfer and its start.

        Returns:
            Its seconds a byte; None if the burst covers so much of it that the rest is too short to measure.
        """
        beyond = nbytes - min(self.burst_bytes, nbytes * _LARGEST_BURST_SHARE)
        rate = seconds / beyond
        if idle_seconds < self.burst_bytes * rate:  # the bucket had not filled again
            rate, beyond = (seconds + idle_seconds) / nbytes, nbytes
        if beyond < MEASURABLE_BYTES:
            return None
        rate = max(rate, _LEAST_SECONDS_PER_BYTE)
        self._add(rate, beyond)
        return rate

    def seconds_at(self, rate: float, nbytes: int, idle_seconds: float) -> float:
        """Seconds that a transfer takes at a rate, begun so many seconds after the end of the last one."""
        return max(
            nbytes * rate - min(self.burst_bytes * rate, nbytes * rate * _LARGEST_BURST_SHARE, idle_seconds), 0.0
        )

    def record_pair(self, first: tuple[int, float], second: tuple[int, float]) -> None:
        """Takes in two transfers in a row, bytes and seconds each: the second one starts with an empty bucket."""
        self.probed = second[1] / second[0]
        self._add(self.probed, second[0])
        rate = self.seconds_per_byte or _LEAST_SECONDS_PER_BYTE
        self.burst_bytes = min(max(first[0] - first[1] / rate, 0.0), float(first[0]))

    def free_bytes(self, now: float) -> float:
        """Bytes that have gathered in the bucket."""
        rate = self.seconds_per_byte
        return min(self.burst_bytes, (now - self.emptied_at) / rate) if rate else 0.0

    @property
    def full_at(self) -> float:
        """When the bucket is full."""
        return self.emptied_at + self.burst_bytes * (self.seconds_per_byte or 0.0)

    def _add(self, rate: float, nbytes: float) -> None:
        rate = max(rate, _LEAST_SECONDS_PER_BYTE)
        if len(self._readings) >= 2:
            last = self._readings[-1]
            before = _weighted_median(list(self._readings)[:-1])
            alike = same_within(before, nbytes)
            if min(last[0], rate) > before + alike or max(last[0], rate) < before - alike:
                self._readings.clear()  # two in a row deviate the same way: the link has changed
                if abs(last[0] - rate) < same_within(rate, nbytes):  # otherwise the link changed during that reading
                    self._readings.append(last)
        self._readings.append((rate, nbytes))
        self.seconds_per_byte = middle = _weighted_median(self._readings)
        self.deviation = rate / middle - 1 if abs(rate - middle) > same_within(middle, nbytes) else 0.0


def _weighted_median(readings: Iterable[tuple[float, float]]) -> float:
    """Median of rates, weighted by bytes, because a delay of a millisecond matters less in a long transfer."""
    ordered = sorted(readings)
    half, passed = sum([nbytes for _, nbytes in ordered]) / 2, 0.0
    for position, (rate, nbytes) in enumerate(ordered):
        passed += nbytes
        if passed > half:
            return rate
        if passed == half:
            return (rate + ordered[position + 1][0]) / 2
    raise ValueError("expected at least one reading")


def same_within(rate: float, nbytes: float) -> float:
    """By how much two readings of one link may differ, in seconds a byte."""
    return _SAME * rate + JITTER_SECONDS / nbytes
