"""Pauses between attempts: longer after each failure, and not the same for all devices."""

from __future__ import annotations

import random

_LEAST_SHARE = 0.75


class Backoff:
    """Doubles the pause with each failure, up to a limit.

    Chance shortens each pause by up to a quarter: devices that lost a server together should not come back together.
    """

    def __init__(self, first_seconds: float, last_seconds: float, source: random.Random | None = None) -> None:
        """Makes one.

        Args:
            first_seconds: The pause after the first failure.
            last_seconds: The longest pause.
            source: Where chance comes from.
        """
        self._first, self._last = first_seconds, last_seconds
        self._random = source or random.Random()
        self.failures = 0

    def fail(self) -> float:
        """Notes a failure; gives the seconds to wait before the next attempt."""
        pause = min(self._first * 2 ** min(self.failures, 32), self._last)
        self.failures += 1
        return float(pause) * self._random.uniform(_LEAST_SHARE, 1.0)

    def reset(self) -> None:
        """Notes a success."""
        self.failures = 0
