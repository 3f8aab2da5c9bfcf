"""The scheduler: queue, workers and load of the server, behind one door."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from loadpart_common.errors import InternalError
from loadpart_edge.scheduling.admission import Admission
from loadpart_edge.scheduling.backlog import Backlog
from loadpart_edge.scheduling.builds import Builds
from loadpart_edge.scheduling.canary import Canary
from loadpart_edge.scheduling.deferred import Deferred
from loadpart_edge.scheduling.dispatcher import Dispatcher
from loadpart_edge.scheduling.hosts import Hosts
from loadpart_edge.scheduling.job import NOBODY, Owner, QueuedJob, Served
from loadpart_edge.scheduling.queue import JobQueue
from loadpart_edge.scheduling.supervisor import Supervisor
from loadpart_edge.workers.base import Preparation, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadpart_common.errors import OffloadError
    from loadpart_edge.workers.base import Job, Worker, WorkerFactory


class Scheduler:
    """Runs jobs on workers, fairly by device, and knows how long a new job would wait.

    Attributes:
        hosts: What is known of the machines, slow-downs among it.
        backlog: Means of the backlog.
        deferred: Runs what can wait until a reply is sent.
        on_change: Called when the backlog, a slow-down, or the number of workers has changed.
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
        on_dropped: Callable[[], object] = lambda: None,
        waits_for_all: bool = True,
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
            on_restart: Called when a worker died or hung and is replaced.
            on_dropped: Called when a job is dropped because its deadline has passed.
            waits_for_all: Whether it is ready only with all workers, and does not start if one cannot be started; or
                with the first one, whenever that comes.
        """
        self._ready_with = seats if waits_for_all else 1
        self.hosts = Hosts()
        self.backlog = Backlog()
        self.deferred = Deferred()
        self.on_change: Callable[[], None] = lambda: None
        self._on_prepared = on_prepared
        self._canary = canary
        self._queue = JobQueue(queue_limit)
        self._builds = Builds()
        self._dispatcher = Dispatcher(self._queue, self._builds, self.hosts, self.deferred, seats, preparations)
        self._dispatcher.on_change = self._workers_changed
        self._dispatcher.on_prepared = self._tail_prepared
        self._dispatcher.on_dropped = on_dropped
        self._admission = Admission(self._queue, self._builds, self._dispatcher, self.hosts)
        self._supervisor = Supervisor(self._dispatcher, factory, on_restart, waits_for_all=waits_for_all)
        self._canaries: dict[str, asyncio.Task[None]] = {}
        self.hosts.on_forgotten = self._forget_canary
        self._prepared = asyncio.Event()
        self._idle = asyncio.Event()
        self._is_change_due = False

    async def start(self) -> None:
        """Starts the workers and waits until all have built their tails, or one has; see `waits_for_all`.

        Raises:
            InternalError: A worker died.
        """
        await self._supervisor.start(self._prepared)

    def check_owner(self, owner: Owner, deadline: float) -> None:
        """Refuses a device before its request is read; see `Admission.check_owner`."""
        self._admission.check_owner(owner, deadline)

    async def run(
        self, job: Job, predict: Callable[[str], float], owner: Owner = NOBODY, deadline: float = math.inf
    ) -> Served:
        """Queues a job and waits for its outcome; cancelling takes it out of the queue.

        Args:
            job: What to run.
            predict: Gives the idle seconds of its tail on a host, for the whole batch; their mean for `ANYWHERE`.
            owner: Whose it is.
            deadline: Until when its outcome is of use, on the clock `time.perf_counter`.

        Raises:
            OverloadedError: There is no room for it, or no time before its deadline.
            DeadlineError: Its deadline came while it waited.
            InternalError: Workers died over it.
            OffloadError: It cannot be done.
        """
        queued = QueuedJob(job, predict, owner, deadline)
        self._builds.seen(owner)
        self._admission.check(queued)
        if self._dispatcher.has_built(queued.tail):
            self._queue.append(queued)
        else:
            self._builds.ask(queued, lambda: Preparation(job.digest, job.plan.cut, 0, job.batch))
        self._dispatcher.dispatch()
        self._change_soon()
        try:
            outcome = await queued.outcome
            return Served(outcome, queued.started_at - queued.queued_at, queued.host)
        except asyncio.CancelledError:  # whoever waited has gone away
            self._dispatcher.cancel(queued)
            raise
        finally:
            if queued.is_waiting:
                self._queue.remove(queued)
                self._changed()

    @property
    def queue_length(self) -> int:
        """Jobs that wait."""
        return len(self._queue) + len(self._builds)

    @property
    def running(self) -> int:
        """Jobs that workers run."""
        return len(self._dispatcher.running)

    @property
    def live_workers(self) -> int:
        """Workers that are there."""
        return self._dispatcher.live_workers

    @property
    def tails_to_build(self) -> int:
        """Tails that workers have yet to build before they are at full strength."""
        return self._dispatcher.tails_to_build

    @property
    def slow_down(self) -> float:
        """Measured over predicted tail time now."""
        return self.hosts.slow_down

    @property
    def backlog_seconds(self) -> float:
        """Predicted seconds until a job is started that comes now from a device with none waiting."""
        capacity = self._dispatcher.capacity
        if len(self._dispatcher.running) + len(self._queue) < capacity:
            return 0.0
        waiting = self._queue.newcomer_seconds * self.hosts.slow_down
        return (self._admission.running_seconds() + waiting) / capacity

    async def drained(self) -> None:
        """Waits until nothing is queued or running."""
        while self.queue_length or self._dispatcher.running:
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        """Ends the workers; jobs that are left fail."""
        canaries = list(self._canaries.values())
        for task in canaries:
            task.cancel()
        await asyncio.gather(*canaries, return_exceptions=True)
        await self._supervisor.close()
        for job in [*self._queue.drain(), *self._builds.drain(), *self._dispatcher.running]:
            job.fail(InternalError("the server has shut down"))

    def resize(self, seats: int) -> None:
        """Has as many workers from now on; those that are too many end what they do first."""
        self._supervisor.resize(seats)

    @property
    def busy_workers(self) -> float:
        """Workers that run jobs, on average over the last seconds."""
        return self.backlog.occupancy * self._dispatcher.capacity

    @property
    def waiting_seconds(self) -> float:
        """Predicted seconds of all jobs that wait, for one worker."""
        return self._queue.predicted_seconds * self.hosts.slow_down

    def kill(self) -> None:
        """Ends the workers at once, whatever they do, also while `close` waits for them."""
        self._supervisor.kill()

    def _tail_prepared(self, worker: Worker, preparation: Preparation, answer: Prepared | OffloadError) -> None:
        if preparation == self._canary and isinstance(answer, Prepared):
            self.hosts.measured(worker.host, answer.seconds)
            if worker.host not in self._canaries:
                self._canaries[worker.host] = asyncio.create_task(self._keep_canary(worker.host, preparation))
        self._on_prepared(worker, preparation, answer)

    def _forget_canary(self, host: str) -> None:
        if host in self._canaries:
            self._canaries.pop(host).cancel()

    async def _keep_canary(self, host: str, canary: Preparation) -> None:
        once = canary._replace(runs=1)
        await Canary(self.hosts[host], lambda: self._dispatcher.prepare_when_idle(host, once), self._changed).keep()

    def _workers_changed(self) -> None:
        self._idle.set()
        if not self._prepared.is_set() and self._dispatcher.prepared_workers >= self._ready_with:
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
