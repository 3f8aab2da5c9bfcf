"""Estimates the link to a server from timed requests: round trip and bandwidth, up and down."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from loadpart_device.edges.direction import JITTER_SECONDS, MEASURABLE_BYTES, TRANSFERS, Direction, same_within
from loadpart_device.edges.link import LinkReading

if TYPE_CHECKING:
    from collections.abc import Callable

_ROUND_TRIPS = 8
_CHECKED = 0.25  # by which a checking probe may differ: most of it goes through at once
_QUICK_SECONDS = 0.05
_LEAST_SECONDS = 1e-6  # the resolution of a clock


class LinkEstimator:
    """Takes the least of the latest round trips, since noise only ever adds, and the weighted median of the rates.

    One odd transfer changes nothing; after two in a row that agree, the link counts as changed. Thread-safe.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[LinkReading | None, float]
        self.forget()

    def forget(self) -> None:
        """Drops all readings, because the link has changed."""
        with self._lock:
            self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS)
            self._up, self._down = Direction(), Direction()
            self._naive: deque[float] = deque(maxlen=TRANSFERS)
            self._least_round_trip: float | None = None
            self._extras: deque[float] = deque(maxlen=TRANSFERS)
            self._extra = 0.0
            self._read_at = float("-inf")
            self._update()

    def record(self, up_bytes: int, down_bytes: int, seconds: float) -> None:
        """Takes in a request that has just ended.

        Args:
            up_bytes: Bytes that it carried up.
            down_bytes: Bytes that it carried down.
            seconds: Time on the link, both ways: the request's time less the server's own.
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
            Whether it took as long as the readings predict; then their age starts anew.
        """
        with self._lock:
            now, rate = self._clock(), self._up.seconds_per_byte
            if self._least_round_trip is None or rate is None:
                return False
            transfer = (nbytes - min(self._up.free_bytes(now - seconds), nbytes)) * rate
            self._up.emptied_at = now
            self._update()
            if abs(seconds - self._least_round_trip - transfer) > _CHECKED * transfer + JITTER_SECONDS:
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
        """By what share the last reading of the uplink was slower than the estimate; 0 when they agree.

        Below 0 when it was faster. A second reading that agrees with it will change the estimate.
        """
        return self._up.deviation

    @property
    def age_seconds(self) -> float:
        """Seconds since the uplink was last read; infinite when it never was."""
        return self._clock() - self._read_at

    def _learn_extra(self, nbytes: int, transfer: float, rate: float, idle: float) -> None:
        """Learns what a large request costs beyond a small one and its bytes: its code runs while caches are cold.

        Measurable only on fast links, where the time of the bytes, known from probes, is small against that cost.
        """
        probed = self._up.probed
        if probed and transfer < _QUICK_SECONDS and abs(rate - probed) < same_within(probed, nbytes):
            self._extras.append(transfer - self._up.seconds_at(probed, nbytes, idle))
            self._extra = max(statistics.median(self._extras), 0.0)

    def _update(self) -> None:
        """Makes the reading for full buckets anew. It is replaced as a whole, so that reading it needs no lock."""
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
            sum(self._naive) / len(self._naive),
        )
        self._known = (reading, max(up.full_at, down.full_at))
