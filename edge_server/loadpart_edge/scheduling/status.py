"""The server's load as devices see it, published to all who watch."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from loadpart.v1 import offload_pb2
from loadpart_edge.scheduling.devices import ActiveDevices
from loadpart_edge.scheduling.utilisation import Utilisation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from loadpart_edge.scheduling.scheduler import Scheduler

_LARGE_SECONDS, _LARGE_SHARE = 0.005, 0.1
"""A change of the backlog is published at once above both 5 ms and 10 % of what devices expect."""

_LARGE_SLOW_DOWN = 0.25
"""A change of the slow-down is published at once above this share of it."""

_LEAST_GAP_SECONDS = 0.01
_GAP_SECONDS_A_WATCHER = 5e-5


class StatusBoard:
    """Builds a status once for all who watch, at a set period and at once on a large change.

    Attributes:
        devices: The devices that sent a request lately.
        cpu: Share of the processor cores in use, 0 to 1, at the last period.
        gpu: Share of the busiest GPU in use; None where there is none.
    """

    def __init__(
        self, scheduler: Scheduler, period_seconds: float, models_version: Callable[[], int] = lambda: 0
    ) -> None:
        self._models_version = models_version
        self._watchers = 0
        self.devices = ActiveDevices()
        self._scheduler = scheduler
        self._period_seconds = period_seconds
        self._utilisation = Utilisation()
        self._changed = asyncio.Event()
        self._published: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self.cpu = 0.0
        self.gpu: float | None = None
        self._draining = False
        self._latest, self._published_at = self.current(), time.monotonic()

    @property
    def draining(self) -> bool:
        """Whether the server takes no more."""
        return self._draining

    @draining.setter
    def draining(self, value: bool) -> None:
        self._draining = value
        self._changed.set()

    def current(self) -> offload_pb2.ServerStatus:
        """The load now."""
        return offload_pb2.ServerStatus(
            backlog_seconds=self._scheduler.backlog_seconds,
            slow_down=self._scheduler.slow_down,
            draining=self._draining,
            mean_backlog_seconds=self._scheduler.backlog.mean_seconds,
            externality_seconds=self._scheduler.backlog.externality_seconds,
            active_devices=self.devices.count,
            models_version=self._models_version(),
            workers=self._scheduler.live_workers,
            dispatch_seconds=self._scheduler.hosts.dispatch_seconds,
        )

    def start(self) -> None:
        """Starts to publish."""
        self._task = asyncio.create_task(self._publish())

    async def close(self) -> None:
        """Ends publishing and whoever watches."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._published.cancel()

    def queue_changed(self) -> None:
        """Publishes at once when the change is large."""
        if not self._changed.is_set() and self._is_large_change():
            self._changed.set()

    async def watch(self) -> AsyncIterator[bytes]:
        """The status now, and then every one that is published, each a `WatchStatusResponse` that is written already.

        Ends when the board is closed.
        """
        self._watchers += 1
        try:
            yield self._written(self.current())
            while True:
                published = self._published
                yield await asyncio.shield(published)
        except asyncio.CancelledError:
            if not self._published.cancelled():
                raise
        finally:
            self._watchers -= 1

    def _written(self, status: offload_pb2.ServerStatus) -> bytes:
        return offload_pb2.WatchStatusResponse(status=status).SerializeToString()

    async def _publish(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self.cpu, self.gpu = self._utilisation.cpu(), self._utilisation.gpu()
            self._send()
            next_period = loop.time() + self._period_seconds
            while (left := next_period - loop.time()) > 0:
                await asyncio.sleep(min(least_gap_seconds(self._watchers), left))
                # Not `wait_for`, which loses a cancellation that comes at the moment when the event does.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(next_period):
                        await self._changed.wait()
                    self._changed.clear()
                    if self._is_large_change():
                        self._send()

    def _send(self) -> None:
        """Gives the status now to all who watch."""
        self._latest, self._published_at = self.current(), time.monotonic()
        published, self._published = self._published, asyncio.get_running_loop().create_future()
        published.set_result(self._written(self._latest))

    def _is_large_change(self) -> bool:
        before, slow_down = self._latest, self._scheduler.slow_down
        return (
            is_large_change(
                before.backlog_seconds, time.monotonic() - self._published_at, self._scheduler.backlog_seconds
            )
            or abs(slow_down - before.slow_down) > _LARGE_SLOW_DOWN * before.slow_down
            or self._draining != before.draining
            or self._scheduler.live_workers != before.workers
        )


def least_gap_seconds(watchers: int) -> float:
    """Least time between two publications; it grows with the number of watchers."""
    return max(_LEAST_GAP_SECONDS, watchers * _GAP_SECONDS_A_WATCHER)


def is_large_change(published: float, passed: float, now: float) -> bool:
    """Whether devices should know a backlog at once: it is not the published one, less the time that has passed.

    Args:
        published: The backlog that was published last, in seconds.
        passed: Seconds since then.
        now: The backlog now, in seconds.
    """
    expected = max(published - passed, 0.0)
    return abs(now - expected) > max(_LARGE_SECONDS, _LARGE_SHARE * expected)
