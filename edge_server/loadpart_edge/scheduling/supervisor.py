"""Keeps a worker in every seat: starts it, and another one when it dies, hangs or cannot be started."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING

from loadpart_common.errors import InternalError, OffloadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_edge.scheduling.dispatcher import Dispatcher
    from loadpart_edge.scheduling.seat import Seat
    from loadpart_edge.workers.base import Worker, WorkerFactory

_LOOK_SECONDS = 0.25
"""Period in which hung workers are looked for."""

_STOOD_STILL_SECONDS = 0.5
"""A look that comes later than this finds out that the whole process stood still, not the workers."""

_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 0.1, 10.0
_SHORT_LIFE_SECONDS = 5.0
"""A worker that dies sooner has probably died of its start, so that the next one is started less soon."""

log = logging.getLogger(__name__)


class Supervisor:
    """One task for each seat, and one that looks for workers that hang."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        factory: WorkerFactory,
        on_restart: Callable[[], object],
        *,
        waits_for_all: bool = True,
    ) -> None:
        """Makes a supervisor.

        Args:
            dispatcher: Has the seats.
            factory: Starts workers.
            on_restart: Called when a worker has died and is to be replaced.
            waits_for_all: Whether a worker that cannot be started, or dies while it starts, is an error of the start;
                otherwise it is tried again, as it is later.
        """
        self._waits_for_all = waits_for_all
        self._dispatcher = dispatcher
        self._factory = factory
        self._on_restart = on_restart
        self._is_started = False
        self._is_ending = False
        self._workers: set[Worker] = set()  # those that have not ended
        self._tasks: dict[Seat, asyncio.Task[None]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def start(self, prepared: asyncio.Event) -> None:
        """Starts the workers and waits until enough have built their tails, which `prepared` tells.

        Raises:
            InternalError: A worker died, or could not be started.
        """
        self._looking = asyncio.create_task(self._look_for_hung())
        for seat in self._dispatcher.seats:
            self._open(seat)
        waiting = asyncio.create_task(prepared.wait())
        required = tuple(self._tasks.values()) if self._waits_for_all else ()
        try:
            done, _ = await asyncio.wait([waiting, *required], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        for task in done - {waiting}:
            task.result()  # before all are prepared, a seat's task ends only by an error
        self._is_started = True

    def resize(self, seats: int) -> None:
        """Has as many seats from now on: starts workers for new ones, and has workers of others end what they do.

        Seats without a worker are given up first, then those with the slowest ones.
        """
        wanted = [seat for seat in self._dispatcher.seats if seat.is_wanted]
        for _ in range(seats - len(wanted)):
            self._open(self._dispatcher.add_seat())
        for seat in sorted(wanted, key=self._dispatcher.worth)[: max(len(wanted) - seats, 0)]:
            seat.is_wanted = False
            if seat.worker is None:
                self._tasks[seat].cancel()
                self._dispatcher.remove_seat(seat)
            else:
                seat.retire()

    async def close(self) -> None:
        """Ends the workers."""
        tasks = [task for task in (*self._tasks.values(), self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def kill(self) -> None:
        """Ends the workers at once, whatever they do, also while `close` waits for them; they are not replaced."""
        self._is_ending = True
        for worker in self._workers:
            worker.kill()

    async def _keep(self, seat: Seat) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            try:
                worker = await self._factory.start(seat.index)
            except Exception as error:  # no memory, no descriptors, no node: later there may be
                if self._is_start_strict:
                    raise InternalError(f"worker {seat.index} cannot be started: {error}") from error
                is_known = isinstance(error, OffloadError)
                log.error("worker %d is tried again: %s", seat.index, error, exc_info=None if is_known else error)
            else:
                await self._stay(seat, worker)
                if self._is_ending:
                    return
                if not seat.is_wanted:
                    self._dispatcher.remove_seat(seat)
                    return
                if time.monotonic() - started > _SHORT_LIFE_SECONDS:
                    failures = 0
            if failures:
                await asyncio.sleep(retry_seconds(failures))
            failures += 1

    async def _stay(self, seat: Seat, worker: Worker) -> None:
        """Has a worker work until it is lost or retired; jobs that it had then go to others at once.

        Raises:
            InternalError: It was lost before all were ready.
        """

        def leave(leaving: asyncio.Future[None]) -> None:
            if seat.worker is worker and not leaving.cancelled():
                seat.retire()

        self._workers.add(worker)
        try:
            self._dispatcher.fill(seat, worker)
            worker.leaving.add_done_callback(leave)
            await asyncio.wait([worker.lost, seat.retired], return_when=asyncio.FIRST_COMPLETED)
            if seat.retired.done():
                self._dispatcher.vacate(seat)
            elif not self._is_ending:
                if self._is_start_strict:
                    raise InternalError(f"worker {worker.label} died while it started; its log is above")
                log.error("worker %s died; a new one is started", worker.label)
                self._on_restart()
                self._dispatcher.vacate(seat)
        finally:
            seat.worker = None
            closing = asyncio.ensure_future(worker.close())
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:  # the worker still has to end
                await closing
                raise
            finally:
                self._workers.discard(worker)

    @property
    def _is_start_strict(self) -> bool:
        return self._waits_for_all and not self._is_started

    def _open(self, seat: Seat) -> None:
        task = self._tasks[seat] = asyncio.create_task(self._keep(seat))
        task.add_done_callback(lambda _: self._tasks.pop(seat))

    async def _look_for_hung(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.perf_counter()
            late = now - before - _LOOK_SECONDS
            if late > _STOOD_STILL_SECONDS:
                self._dispatcher.delay(late)
            for worker in self._dispatcher.kill_hung(now, now - before):
                log.error("worker %s hangs and is ended", worker.label)


def retry_seconds(failures: int) -> float:
    """How long to wait before a worker is started again, after so many more failures than one in a row."""
    return random.uniform(0.5, 1.0) * min(_FIRST_RETRY_SECONDS * 2.0 ** min(failures, 32), _LAST_RETRY_SECONDS)
