"""A canary: a short tail that is run on an idle host to see how slow it is."""

from __future__ import annotations

import asyncio
import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from loadpart_edge.scheduling.hosts import Host
    from loadpart_edge.workers.base import Prepared

_PERIOD_SECONDS = 2.0
_PERIOD_SECONDS_SLOW = 0.3
_SLOW = 1.1
_ROW_SECONDS = 0.1
_FIRST_RUNS = 4
_TOLERANCE = 1.5


class Canary:
    """Keeps the slow-down of one host fresh while no tail measures it.

    Otherwise a server that was slow once, and that all devices have left since, would look slow for ever; and one that
    another process slows down would look fast until a device has found out.

    Without tails for 2 s (0.3 s while slow), the canary measures the slow-down. While the host is slow it repeats for
    0.1 s, which averages over other processes' time slices. The first few runs measure what it takes after a pause,
    which is a little longer than one run right after another.
    """

    def __init__(
        self,
        host: Host,
        run: Callable[[], Awaitable[Prepared | None]],
        on_change: Callable[[], None],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Makes one; `keep` runs it.

        Args:
            host: The host that it is about.
            run: Runs the canary once on an idle worker of the host; gives None when there is none.
            on_change: Called when the slow-down was measured.
            sleep: Waits so many seconds.
        """
        self._host = host
        self._run_once = run
        self._on_change = on_change
        self._sleep = sleep

    async def keep(self) -> None:
        """Runs until it is cancelled."""
        slow_down = self._host.slow_down
        expected = dict.fromkeys((0.0, _ROW_SECONDS), self._host.canary_seconds * _TOLERANCE)
        for _ in range(_FIRST_RUNS):
            await self._sleep(_PERIOD_SECONDS_SLOW)
            for row in expected:
                if (seconds := await self._run(row)) is not None:
                    expected[row] = min(expected[row], seconds)
        while True:
            is_slow = slow_down.value > _SLOW and self._host.workers > 0
            period, row = (_PERIOD_SECONDS_SLOW, _ROW_SECONDS) if is_slow else (_PERIOD_SECONDS, 0.0)
            await self._sleep(max(period - slow_down.age_seconds, _PERIOD_SECONDS_SLOW))
            if slow_down.age_seconds < period:
                continue
            if (seconds := await self._run(row)) is not None:
                slow_down.record(expected[row], seconds)
                self._on_change()

    async def _run(self, row_seconds: float) -> float | None:
        """Mean seconds of runs that together take so long, or until there is a job; None without any run."""
        took: list[float] = []
        while (not took or sum(took) < row_seconds) and (prepared := await self._run_once()) is not None:
            took.append(prepared.seconds)
        return statistics.mean(took) if took else None
