"""What is known of the link: round trip and bandwidth, from timed requests."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MEASURABLE_BYTES = 32 << 10
"""Fewer bytes fit into buffers on the way, and tell of the round trip, not of the bandwidth."""

_ROUND_TRIPS = 8
_TRANSFERS = 3


@dataclass(frozen=True, slots=True)
class LinkReading:
    """A state of the link.

    Attributes:
        round_trip_seconds: Of a small request, there and back.
        seconds_per_byte: Of the uplink; the inverse of its bandwidth.
    """

    round_trip_seconds: float
    seconds_per_byte: float

    def __str__(self) -> str:
        megabits = 8e-6 / max(self.seconds_per_byte, 1e-12)
        return f"{megabits:.3g} Mbit/s, round trip {self.round_trip_seconds * 1e3:.2g} ms"


class LinkEstimator:
    """The least of the latest round trips, since all noise adds to them, and the median of the latest bandwidths.

    Thread-safe.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._round_trips: deque[float] = deque(maxlen=_ROUND_TRIPS)
        self._transfers: deque[float] = deque(maxlen=_TRANSFERS)
        self._reading: LinkReading | None = None
        self._read_at = float("-inf")

    def record(self, nbytes: int, seconds: float) -> None:
        """Takes in a request.

        Args:
            nbytes: Bytes that it carried up.
            seconds: On the way, both ways, without what the server took.
        """
        with self._lock:
            if nbytes < MEASURABLE_BYTES:
                self._round_trips.append(seconds)
            elif self._round_trips:
                self._transfers.append(max(seconds - min(self._round_trips), 1e-9) / nbytes)
                self._read_at = self._clock()
            if self._round_trips and self._transfers:
                self._reading = LinkReading(min(self._round_trips), statistics.median(self._transfers))

    def forget(self) -> None:
        """Drops all readings: the link is another one now."""
        with self._lock:
            self._round_trips.clear()
            self._transfers.clear()
            self._reading = None
            self._read_at = float("-inf")

    @property
    def reading(self) -> LinkReading | None:
        """The state of the link, or None as long as it is unknown."""
        return self._reading

    @property
    def age_seconds(self) -> float:
        """Seconds since the bandwidth was last read; infinite when it never was."""
        return self._clock() - self._read_at
