"""The scheduler: queue, workers and load of the server, behind one door."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from loadpart_common.errors import InternalError
from loadpart_edge.scheduling.backlog import Backlog
from loadpart_edge.scheduling.canary import Canary
from loadpart_edge.scheduling.deferred import Deferred
from loadpart_edge.scheduling.dispatcher import Dispatcher
from loadpart_edge.scheduling.hosts import Hosts
from loadpart_edge.scheduling.queue import JobQueue, QueuedJob, Served
from loadpart_edge.scheduling.supervisor import Supervisor
from loadpart_edge.workers.base import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadpart_common.errors import OffloadError
    from loadpart_edge.workers.base import Job, Preparation, Worker, WorkerFactory


class Scheduler:
    """Runs jobs on workers, first in, first out, and knows how long a new job would wait.

    Attributes:
        hosts: What is known of the machines, slow-downs among it.
        backlog: Means of the backlog.
        deferred: Runs what can wait until a reply is sent.
        on_change: Called when the backlog or a slow-down has changed.
    """

    def __init__(
        self,
        factory: WorkerFactory,
        *,
        seats: int,
        queue_limit: int,
        preparations: Sequence[Preparation] = (),
        canary: Preparation | None = None,
        on_prepared: Callable[[Worker, Preparation, Prepared | OffloadError], object] = lambda *_: None,
        on_restart: Callable[[], object] = lambda: None,
    ) -> None:
        """Makes a scheduler; `start` starts the workers.

        Args:
            factory: Makes the workers.
            seats: How many workers.
            queue_limit: Jobs that may wait.
            preparations: Tails that every worker builds while it has nothing else to do.
            canary: A short tail, one of `preparations`, that is run now and then while nothing else is.
            on_prepared: Called with worker, preparation and result when a worker has built one of its tails, or (with
                an error) could not.
            on_restart: Called when a worker died and is replaced.
        """
        self.hosts = Hosts()
        self.backlog = Backlog()
        self.deferred = Deferred()
        self.on_change: Callable[[], None] = lambda: None
        self._on_prepared = on_prepared
        self._canary = canary
        self._queue = JobQueue(queue_limit)
        self._dispatcher = Dispatcher(self._queue, self.hosts, self.deferred, seats, preparations)
        self._dispatcher.on_change = self._workers_changed
        self._dispatcher.on_prepared = self._tail_prepared
        self._supervisor = Supervisor(self._dispatcher, factory, on_restart)
        self._canaries: list[asyncio.Task[None]] = []
        self._prepared = asyncio.Event()
        self._idle = asyncio.Event()
        self._is_change_due = False

    async def start(self) -> None:
        """Starts the workers and waits until each has built its tails.

        Raises:
            InternalError: A worker died.
        """
        await self._supervisor.start(self._prepared)
        if self._canary is not None:
            self._canaries = [asyncio.create_task(self._keep_canary(name, self._canary)) for name in self.hosts.names]

    async def run(self, job: Job, predict: Callable[[str], float]) -> Served:
        """Queues a job and waits for its outcome; cancelling takes it out of the queue.

        Args:
            job: What to run.
            predict: Gives the idle seconds of its tail on a host, for the whole batch.

        Raises:
            OverloadedError: The queue is full.
            InternalError: Workers died over it.
            OffloadError: It cannot be done.
        """
        if self._queue.is_full:
            raise self._queue.overloaded(self.backlog_seconds)
        queued = QueuedJob(job, predict, self.hosts.first)
        self._queue.append(queued)
        self._dispatcher.dispatch()
        self._change_soon()
        try:
            outcome = await queued.outcome
            return Served(outcome, queued.started_at - queued.queued_at, queued.host)
        finally:
            if queued.is_waiting:  # whoever waited has gone away
                self._queue.remove(queued)
                self._changed()

    @property
    def queue_length(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Jobs that workers run."""
        return len(self._dispatcher.running)

    @property
    def slow_down(self) -> float:
        """Measured over predicted tail time now."""
        return self.hosts.slow_down

    @property
    def backlog_seconds(self) -> float:
        """Predicted seconds until a job that comes now is started."""
        capacity = self._dispatcher.capacity
        running = self._dispatcher.running
        if len(running) + len(self._queue) < capacity:
            return 0.0
        now = time.perf_counter()
        left = sum(
            max(0.0, job.predicted_seconds * self.hosts[job.host].slow_down.value - (now - job.started_at))
            for job in running
        )
        waiting = self._queue.predicted_seconds * self.hosts.slow_down if self._queue else 0.0
        return (left + waiting) / capacity

    async def drained(self) -> None:
        """Waits until nothing is queued or running."""
        while self._queue or self._dispatcher.running:
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        """Ends the workers; jobs that are left fail."""
        for task in self._canaries:
            task.cancel()
        await asyncio.gather(*self._canaries, return_exceptions=True)
        await self._supervisor.close()
        for job in [*self._queue.drain(), *self._dispatcher.running]:
            job.fail(InternalError("the server has shut down"))

    def _tail_prepared(self, worker: Worker, preparation: Preparation, answer: Prepared | OffloadError) -> None:
        if preparation == self._canary and isinstance(answer, Prepared):
            self.hosts[worker.host].canary_seconds = answer.seconds
        self._on_prepared(worker, preparation, answer)

    async def _keep_canary(self, host: str, canary: Preparation) -> None:
        once = canary._replace(runs=1)
        await Canary(self.hosts[host], lambda: self._dispatcher.prepare_when_idle(host, once), self._changed).keep()

    def _workers_changed(self) -> None:
        self._idle.set()
        if not self._prepared.is_set() and self._dispatcher.is_prepared:
            self._prepared.set()
        self._change_soon()

    def _change_soon(self) -> None:
        if not self._is_change_due:
            self._is_change_due = True
            self.deferred(self._changed)

    def _changed(self) -> None:
        self._is_change_due = False
        self.backlog.changed(self.backlog_seconds, len(self._dispatcher.running) / self._dispatcher.capacity)
        self.on_change()
