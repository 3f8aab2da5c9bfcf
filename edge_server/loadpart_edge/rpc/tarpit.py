"""Connections whose calls are refused again and again are served slowly, so that wrong calls cost the server little."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_BURST_SECONDS = 2.0
"""So many seconds' worth of refusals slow nothing down."""

_LONGEST_SECONDS = 5.0
_MOST_WAITING = 8192
_MOST_CONNECTIONS = 8192


class Tarpit:
    """Paces the calls of each connection by how many were refused (generic cell rate algorithm, ITU-T I.371).

    It counts connections rather than devices or clients, since nobody can use another one's: a device beside a hostile
    one that shares its token, or its address, is not slowed.
    """

    def __init__(self, refusals_per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Makes an empty one.

        Args:
            refusals_per_second: Refusals on a connection, for a long time, that slow nothing down.
            clock: Tells the time, in seconds.
        """
        self._gap_seconds = 1 / refusals_per_second
        self._clock = clock
        self._paid_at: dict[str, float] = {}
        self._waiting = 0

    def refused(self, peer: str) -> None:
        """Notes that a call on a connection was refused."""
        now = self._clock()
        paid_at = max(self._paid_at.pop(peer, 0.0), now) + self._gap_seconds
        self._paid_at[peer] = min(paid_at, now + _BURST_SECONDS + _LONGEST_SECONDS)
        if len(self._paid_at) > _MOST_CONNECTIONS:
            del self._paid_at[next(iter(self._paid_at))]

    def wait_seconds(self, peer: str) -> float:
        """Seconds that a call on a connection has to wait now."""
        paid_at = self._paid_at.get(peer)
        return 0.0 if paid_at is None else max(paid_at - self._clock() - _BURST_SECONDS, 0.0)

    async def hold(self, peer: str) -> None:
        """Waits before a call on a connection is let in, or its refusal is sent."""
        wait = self.wait_seconds(peer)
        if not wait or self._waiting >= _MOST_WAITING:
            return
        self._waiting += 1
        try:
            await asyncio.sleep(wait)
        finally:
            self._waiting -= 1
