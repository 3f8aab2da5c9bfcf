"""The state of a link, as a value."""

from __future__ import annotations

from typing import NamedTuple


class LinkReading(NamedTuple):
    """A state of the link.

    Attributes:
        round_trip_seconds: Time of a request that carries hardly any bytes, there and back.
        seconds_per_byte: Of the uplink; the inverse of its bandwidth.
        free_bytes: Bytes of a burst that the uplink would carry at once now.
        down_seconds_per_byte: Of the downlink; that of the uplink as long as it has not been measured.
        down_free_bytes: Bytes of a burst that the downlink would carry at once.
        naive_bytes_per_second: Mean of bytes over seconds of the latest transfers, round trips included, as a simpler
            estimator computes the bandwidth.
    """

    round_trip_seconds: float
    seconds_per_byte: float
    free_bytes: float = 0.0
    down_seconds_per_byte: float = 0.0
    down_free_bytes: float = 0.0
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
