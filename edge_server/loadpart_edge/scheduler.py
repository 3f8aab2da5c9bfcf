"""Queues jobs for the workers, keeps the workers alive, and knows how long a new job would wait."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadpart_common.errors import InternalError, OffloadError, OverloadedError
from loadpart_edge.load import SlowDown
from loadpart_edge.messages import Done, Prepare, Prepared, Run
from loadpart_edge.pool import WorkerDiedError, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadpart_edge.settings import Settings

_ATTEMPTS = 2
"""Workers that may die over one job; it is what kills them, after that."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    message: Run
    predicted_seconds: float
    answer: asyncio.Future[Outcome]
    queued_at: float = field(default_factory=time.perf_counter)
    started_at: float = 0.0
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job: the worker's answer, and the seconds that it waited for the worker."""

    done: Done
    queue_seconds: float


class Scheduler:
    """A bounded first-in first-out queue in front of worker processes."""

    def __init__(
        self,
        settings: Settings,
        preparations: Sequence[Prepare],
        *,
        on_prepared: Callable[[Prepare, Prepared | None], None],
        on_change: Callable[[], None],
    ) -> None:
        """Makes a scheduler; `start` starts the workers.

        Args:
            settings: Settings of the daemon.
            preparations: Tails that every worker builds while it has nothing else to do.
            on_prepared: Called for each that is built, or (with None) could not be.
            on_change: Called when the queue has changed.
        """
        self._settings = settings
        self._preparations = preparations
        self._on_prepared = on_prepared
        self._on_change = on_change
        self._queue: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._wake = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self._unprepared = settings.workers
        self._prepared = asyncio.Event()
        self.slow_down = SlowDown()
        self.workers: dict[int, WorkerProcess] = {}
        self.restarts = 0

    async def start(self) -> None:
        """Starts the workers and waits until each has built its tails."""
        self._tasks = [asyncio.create_task(self._serve(index)) for index in range(self._settings.workers)]
        prepared = asyncio.create_task(self._prepared.wait())
        done, _ = await asyncio.wait([prepared, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        prepared.cancel()
        for task in done - {prepared}:
            task.result()  # a worker's task ends only by an error

    async def run(self, message: Run, predicted_seconds: float) -> Outcome:
        """Queues a job and waits for its outcome; cancelling takes it out of the queue.

        Raises:
            OverloadedError: The queue is full.
            InternalError: Workers died over it.
            OffloadError: It cannot be done.
        """
        if len(self._queue) >= self._settings.queue_limit:
            raise OverloadedError(f"the queue is full: {len(self._queue)} jobs wait, {self.backlog_seconds:.3f} s")
        job = _Job(message, predicted_seconds, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        await self._notify()
        try:
            return await job.answer
        finally:
            if job in self._queue:
                self._queue.remove(job)
                self._on_change()

    @property
    def queue_length(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs that workers run."""
        return len(self._running)

    @property
    def backlog_seconds(self) -> float:
        """Predicted seconds until a job that comes now is started."""
        slow_down = self.slow_down.value
        if len(self._running) + len(self._queue) < self._settings.workers:
            return 0.0
        now = time.perf_counter()
        left = sum(max(0.0, job.predicted_seconds * slow_down - (now - job.started_at)) for job in self._running)
        waiting = sum(job.predicted_seconds for job in self._queue) * slow_down
        return (left + waiting) / self._settings.workers

    async def drained(self) -> None:
        """Waits until nothing is queued or running."""
        async with self._wake:
            await self._wake.wait_for(lambda: not self._queue and not self._running)

    async def close(self) -> None:
        """Ends the workers; jobs that are left fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for job in [*self._queue, *self._running]:
            if not job.answer.done():
                job.answer.set_exception(InternalError("the server is shutting down"))

    async def _notify(self) -> None:
        async with self._wake:
            self._wake.notify_all()
        self._on_change()

    async def _serve(self, index: int) -> None:
        """Keeps one worker going: starts it, gives it jobs and, when there are none, preparations."""
        first = True
        while True:
            worker = await WorkerProcess.start(self._settings)
            self.workers[index] = worker
            preparations = deque(self._preparations)
            try:
                while True:
                    if not preparations and first:
                        first = False
                        self._unprepared -= 1
                        if self._unprepared == 0:
                            self._prepared.set()
                    job = await self._next(wait=not preparations)
                    if job is not None:
                        await self._run(worker, job)
                    else:
                        await self._prepare(worker, preparations.popleft())
            except WorkerDiedError as error:
                if first:
                    raise InternalError(f"{error} while it started; its log is above") from error
                log.error("%s; a new one is started", error)
                self.restarts += 1
            finally:
                await worker.close()

    async def _next(self, *, wait: bool) -> _Job | None:
        async with self._wake:
            if wait:
                await self._wake.wait_for(lambda: bool(self._queue))
            return self._queue.popleft() if self._queue else None

    async def _run(self, worker: WorkerProcess, job: _Job) -> None:
        job.attempts += 1
        job.started_at = time.perf_counter()
        self._running.add(job)
        try:
            done = await worker.request(job.message)
        except WorkerDiedError:
            if job.attempts < _ATTEMPTS:
                self._queue.appendleft(job)
            elif not job.answer.done():
                job.answer.set_exception(InternalError("workers died over this job; it is given up"))
            raise
        except OffloadError as error:
            if not job.answer.done():
                job.answer.set_exception(error)
        else:
            self.slow_down.record(job.predicted_seconds, done.seconds)
            if not job.answer.done():
                job.answer.set_result(Outcome(done, job.started_at - job.queued_at))
        finally:
            self._running.discard(job)
            await self._notify()

    async def _prepare(self, worker: WorkerProcess, preparation: Prepare) -> None:
        try:
            self._on_prepared(preparation, await worker.request(preparation))
        except OffloadError as error:
            log.error("model %s, cut %d: %s", preparation.model, preparation.cut, error)
            self._on_prepared(preparation, None)
