"""What is known of the link: round trip and bandwidth, up and down, from timed requests.

A request that carries n bytes is on the way for

    round trip + max(n - f, 0) * seconds per byte

f are the bytes that go through at once, since shapers and radios let a burst pass after a pause: a bucket of so many
bytes that fills again at the rate of the link (a token bucket). A short message therefore tells nothing of the
bandwidth, and a message right after a longer one tells it exactly, because the bucket is empty.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MEASURABLE_BYTES = 32 << 10
"""Fewer bytes fit into buffers on the way, and tell of the round trip, not of the bandwidth."""

_ROUND_TRIPS = 8
_TRANSFERS = 8
_SAME, _JITTER_SECONDS = 0.15, 0.002
"""Readings within 15 % plus 2 ms belong to one link; two successive ones outside mean that the link has changed."""

_CHECKED = 0.25  # by which a checking probe may differ: most of it goes through at once

_QUICK_SECONDS = 0.05
_LARGEST_BURST_SHARE = 0.75
_LEAST_SECONDS = 1e-6  # what a clock tells at all
_LEAST_SECONDS_PER_BYTE = 1e-11  # 800 Gbit/s: what a clock cannot tell from nothing


class LinkReading(NamedTuple):
    """A state of the link.

    Attributes:
        round_trip_seconds: What a request takes that carries no bytes to speak of, there and back.
        seconds_per_byte: Of the uplink; the inverse of its bandwidth.
        free_bytes: That the uplink would carry at once now.
        down_seconds_per_byte: Of the downlink; that of the uplink as long as it has not been measured.
        down_free_bytes: That the downlink would carry at once.
        spread: Median deviation of the latest readings of the uplink from their median, as a share; 1 when there is
            one only.
        naive_bytes_per_second: Mean of bytes over seconds of the latest transfers, round trips and all: what a
            simpler estimator would take for the bandwidth.
    """

    round_trip_seconds: float
    seconds_per_byte: float
    free_bytes: float = 0.0
    down_seconds_per_byte: float = 0.0
    down_free_bytes: float = 0.0
    spread: float = 1.0
    naive_bytes_per_second: float = 0.0

    @property
    def megabits(self) -> float:
        """Bandwidth of the uplink in Mbit/s."""
        return 8e-6 / max(self.seconds_per_byte, 1e-12)

    def reply_seconds(self, nbytes: float) -> float:
        """Seconds that an answer of so many bytes takes beyond the round trip."""
        return max(nbytes - self.down_free_bytes, 0.0) * self.down_seconds_per_byte

    def __str__(self) -> str:
        return f"{self.megabits:.3g} Mbit/s, round trip {self.round_trip_seconds * 1e3:.2g} ms"


class _Direction:
    """One direction of the link: its rate, and the bucket of bytes that go through at once."""

    def __init__(self) -> None:
        self.seconds_per_byte: float | None = None
        self.spread = 1.0
        self.probed: float | None = None  # the rate that the last pair of probes told
        self.deviation = 0.0  # see LinkEstimator
        self.burst_bytes = 0.0
        self.emptied_at = float("-inf")
        self._readings: deque[tuple[float, float]] = deque(maxlen=_TRANSFERS)  # seconds a byte, bytes

    def record(self, nbytes: int, seconds: float, idle_seconds: float) -> float | None:
        """Takes in a transfer that began so many seconds after the end of the last one.

        Returns:
            Its seconds a byte; None if so much of it went through at once that it tells nothing.
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
        """Takes in two transfers in a row, bytes and seconds each: the second one finds the bucket empty."""
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
            alike = _same_within(before, nbytes)
            if min(last[0], rate) > before + alike or max(last[0], rate) < before - alike:
                self._readings.clear()  # twice in a row, the same way: it is another link now
                if abs(last[0] - rate) < _same_within(rate, nbytes):  # if not, the link was changing when it was read
                    self._readings.append(last)
        self._readings.append((rate, nbytes))
        self.seconds_per_byte = middle = _weighted_median(self._readings)
        self.deviation = rate / middle - 1 if abs(rate - middle) > _same_within(middle, nbytes) else 0.0
        if len(self._readings) > 1:
            self.spread = statistics.median([abs(each - middle) for each, _ in self._readings]) / middle


def _weighted_median(readings: Iterable[tuple[float, float]]) -> float:
    """Median of rates, each of which counts as its bytes do: a delay of a millisecond hides in a long transfer."""
    ordered = sorted(readings)
    half, passed = sum([nbytes for _, nbytes in ordered]) / 2, 0.0
    for position, (rate, nbytes) in enumerate(ordered):
        passed += nbytes
        if passed > half:
            return rate
        if passed == half:
            return (rate + ordered[position + 1][0]) / 2
    raise ValueError("expected at least one reading")


def _same_within(rate: float, nbytes: float) -> float:
    """By how much two readings of one link may differ, in seconds a byte."""
    return _SAME * rate + _JITTER_SECONDS / nbytes


class LinkEstimator:
    """The least of the latest round trips, since all noise adds to them, and weighted medians of the latest bandwidths.

    One odd transfer moves nothing; two in a row that agree are believed. Thread-safe.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[LinkReading | None, float]
        self.forget()

    def forget(self) -> None:
        """Drops all readings: the link is another one now."""
        with self._lock:
            self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS)
            self._up, self._down = _Direction(), _Direction()
            self._naive: deque[float] = deque(maxlen=_TRANSFERS)
            self._least_round_trip: float | None = None
            self._extras: deque[float] = deque(maxlen=_TRANSFERS)
            self._extra = 0.0
            self._read_at = float("-inf")
            self._update()

    def record(self, up_bytes: int, down_bytes: int, seconds: float) -> None:
        """Takes in a request that has just ended.

        Args:
            up_bytes: Bytes that it carried up.
            down_bytes: Bytes that it carried down.
            seconds: On the way, both ways, without what the server took.
        """
        with self._lock:
            now = self._clock()
            if up_bytes < MEASURABLE_BYTES:
                if down_bytes < MEASURABLE_BYTES:
                    self._round_trips.append(seconds)
                    self._least_round_trip = min(self._round_trips)
                    self._update()
                return
            if self._least_round_trip is None:
                return
            self._naive.append(up_bytes / max(seconds, _LEAST_SECONDS))
            reading = self.reading
            reply = reading.reply_seconds(down_bytes) if reading else 0.0
            transfer = max(seconds - self._least_round_trip - reply, 0.0)
            idle = max(now - seconds - self._up.emptied_at, 0.0)
            rate = self._up.record(up_bytes, max(transfer - self._extra, 0.0), idle)
            self._up.emptied_at = now
            if rate is not None:
                self._read_at = now
                self._learn_extra(up_bytes, transfer, rate, idle)
            self._update()

    def record_pair(self, first: tuple[int, float], second: tuple[int, float], *, down: bool = False) -> None:
        """Takes in two probes, one right after the other, bytes and seconds each; the second has just ended."""
        with self._lock:
            least = self._least_round_trip
            if least is None:
                return
            direction = self._down if down else self._up
            direction.record_pair((first[0], max(first[1] - least, 0.0)), (second[0], max(second[1] - least, 0.0)))
            direction.emptied_at = self._clock()
            if not down:
                self._naive += (nbytes / max(seconds, _LEAST_SECONDS) for nbytes, seconds in (first, second))
                self._read_at = direction.emptied_at
            self._update()

    def check(self, nbytes: int, seconds: float) -> bool:
        """Takes in a single probe, which has just ended, of not many more bytes than the bucket holds.

        Returns:
            Whether it took as long as the readings say; then they are fresh.
        """
        with self._lock:
            now, rate = self._clock(), self._up.seconds_per_byte
            if self._least_round_trip is None or rate is None:
                return False
            transfer = (nbytes - min(self._up.free_bytes(now - seconds), nbytes)) * rate
            self._up.emptied_at = now
            self._update()
            if abs(seconds - self._least_round_trip - transfer) > _CHECKED * transfer + _JITTER_SECONDS:
                return False
            self._read_at = now
            return True

    @property
    def reading(self) -> LinkReading | None:
        """The state of the link, or None as long as it is unknown."""
        known, full_at = self._known
        if known is None or (now := self._clock()) >= full_at:
            return known
        return known._replace(free_bytes=self._up.free_bytes(now), down_free_bytes=self._down.free_bytes(now))

    @property
    def deviation(self) -> float:
        """By what share a byte took longer at the last reading of the uplink, which is believed if another agrees.

        Below 0 if it was quicker; 0 if it was as before.
        """
        return self._up.deviation

    @property
    def age_seconds(self) -> float:
        """Seconds since the uplink was last read; infinite when it never was."""
        return self._clock() - self._read_at

    def _learn_extra(self, nbytes: int, transfer: float, rate: float, idle: float) -> None:
        """Learns what a request takes beyond a small one and its bytes: it is made while the caches are cold.

        It shows where the bytes take so little time that their rate, known from probes, leaves a rest.
        """
        probed = self._up.probed
        if probed and transfer < _QUICK_SECONDS and abs(rate - probed) < _same_within(probed, nbytes):
            self._extras.append(transfer - self._up.seconds_at(probed, nbytes, idle))
            self._extra = max(statistics.median(self._extras), 0.0)

    def _update(self) -> None:
        """Makes the reading that holds from when the buckets are full; it is replaced as a whole, and needs no lock."""
        up, down = self._up, self._down
        if self._least_round_trip is None or up.seconds_per_byte is None:
            self._known = (None, 0.0)
            return
        reading = LinkReading(
            self._least_round_trip + self._extra,
            up.seconds_per_byte,
            up.burst_bytes,
            down.seconds_per_byte or up.seconds_per_byte,
            down.burst_bytes,
            up.spread,
            sum(self._naive) / len(self._naive),
        )
        self._known = (reading, max(up.full_at, down.full_at))
