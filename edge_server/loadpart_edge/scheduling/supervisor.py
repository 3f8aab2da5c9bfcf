"""Keeps a worker in every seat: starts it, and another one when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from loadpart_common.errors import InternalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_edge.scheduling.dispatcher import Dispatcher, Seat
    from loadpart_edge.workers.base import WorkerFactory

log = logging.getLogger(__name__)


class Supervisor:
    """One task for each seat."""

    def __init__(self, dispatcher: Dispatcher, factory: WorkerFactory, on_restart: Callable[[], object]) -> None:
        """Makes a supervisor.

        Args:
            dispatcher: Has the seats.
            factory: Starts workers.
            on_restart: Called when a worker has died and is to be replaced.
        """
        self._dispatcher = dispatcher
        self._factory = factory
        self._on_restart = on_restart
        self._is_started = False
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, prepared: asyncio.Event) -> None:
        """Starts the workers and waits until all have built their tails, which `prepared` tells.

        Raises:
            InternalError: A worker died.
        """
        self._tasks = [asyncio.create_task(self._keep(seat)) for seat in self._dispatcher.seats]
        waiting = asyncio.create_task(prepared.wait())
        done, _ = await asyncio.wait([waiting, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        for task in done - {waiting}:
            task.result()  # a seat's task ends only by an error
        self._is_started = True

    async def close(self) -> None:
        """Ends the workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep(self, seat: Seat) -> None:
        while True:
            worker = await self._factory.start(seat.index)
            try:
                self._dispatcher.fill(seat, worker)
                await worker.lost
            finally:
                seat.worker = None
                with contextlib.suppress(asyncio.CancelledError):
                    await worker.close()
            if not self._is_started:
                raise InternalError(f"worker {worker.label} died while it started; its log is above")
            log.error("worker %s died; a new one is started", worker.label)
            self._on_restart()
            self._dispatcher.vacate(seat)
