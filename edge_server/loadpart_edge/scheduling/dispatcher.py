"""Gives waiting jobs to idle workers, and hands out what they answer."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from loadpart_common.errors import InternalError, OffloadError
from loadpart_edge.workers.base import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadpart_edge.scheduling.deferred import Deferred
    from loadpart_edge.scheduling.hosts import Hosts
    from loadpart_edge.scheduling.queue import JobQueue, QueuedJob
    from loadpart_edge.workers.base import Outcome, Preparation, Worker

_ATTEMPTS = 2
"""Workers that may die over one job; after that it is the job that kills them."""

log = logging.getLogger(__name__)


class Seat:
    """A worker's place.

    Attributes:
        index: Its number.
        worker: The worker in it; None while one is started.
        capacity: How many jobs the worker takes at once.
        running: The jobs that the worker has.
        is_preparing: Whether it builds or times a tail.
        preparations: Tails that it has yet to build.
    """

    def __init__(self, index: int, preparations: Sequence[Preparation]) -> None:
        self.index = index
        self.worker: Worker | None = None
        self.capacity = 1
        self.running: set[QueuedJob] = set()
        self.is_preparing = False
        self.preparations = deque(preparations)

    @property
    def is_idle(self) -> bool:
        """Whether the worker has nothing at all to do."""
        return self.worker is not None and not self.running and not self.is_preparing

    @property
    def is_prepared(self) -> bool:
        """Whether the worker has built all its tails."""
        return self.worker is not None and not self.preparations and not self.is_preparing


class Dispatcher:
    """Seats, and the jobs that their workers run.

    A job goes to an idle worker within the same turn of the event loop that brings it, and its outcome to whoever
    waits within the turn that brings the answer: on a quiet machine every further turn costs a tenth of a millisecond.

    Attributes:
        seats: The workers' places.
        running: The jobs that workers have.
        capacity: How many jobs all workers together take at once; a seat whose worker is being replaced counts as
            the one before, and as 1 before the first.
        on_change: Called when a worker has come, has finished something, or is lost.
        on_prepared: Called with worker, preparation and result when a worker has built one of its tails, or (with an
            error) could not.
    """

    def __init__(
        self, queue: JobQueue, hosts: Hosts, deferred: Deferred, seats: int, preparations: Sequence[Preparation]
    ) -> None:
        """Makes a dispatcher whose seats are empty.

        Args:
            queue: The jobs that wait.
            hosts: Learns the slow-down from each tail.
            deferred: Runs what can wait until a reply is sent.
            seats: How many workers there will be.
            preparations: Tails that every worker builds while it has nothing else to do.
        """
        self._queue = queue
        self._hosts = hosts
        self._deferred = deferred
        self._preparations = preparations
        self.seats = [Seat(index, preparations) for index in range(seats)]
        self.running: set[QueuedJob] = set()
        self.capacity = seats
        self.on_change: Callable[[], None] = lambda: None
        self.on_prepared: Callable[[Worker, Preparation, Prepared | OffloadError], None] = lambda *_: None

    @property
    def is_prepared(self) -> bool:
        """Whether every worker is there and has built its tails."""
        return all(seat.is_prepared for seat in self.seats)

    def fill(self, seat: Seat, worker: Worker) -> None:
        """Puts a worker into a seat, and gives it what there is to do."""
        self.capacity += worker.capacity - seat.capacity
        seat.worker, seat.capacity = worker, worker.capacity
        self._hosts.add(worker.host)
        self.dispatch()
        self.on_change()

    def vacate(self, seat: Seat) -> None:
        """Notes that a seat's worker is lost: its jobs go to others, unless they have killed a worker before."""
        seat.worker = None
        seat.is_preparing = False
        seat.preparations = deque(self._preparations)
        jobs, seat.running = seat.running, set()
        self.running -= jobs
        for job in sorted(jobs, key=lambda job: job.queued_at, reverse=True):
            if job.attempts < _ATTEMPTS:
                self._queue.put_back(job)
            else:
                job.fail(InternalError("workers died over this job; it is given up"))
        self.dispatch()
        self.on_change()

    def dispatch(self) -> None:
        """Gives workers what there is to do: jobs first, then preparations."""
        for seat in self.seats:
            worker = seat.worker
            if worker is None or seat.is_preparing:
                continue
            while self._queue and len(seat.running) < worker.capacity:
                self._start(seat, worker, self._queue.pop())
            if seat.preparations and not seat.running:
                preparation = seat.preparations.popleft()
                self._prepare(seat, worker, preparation, partial(self._tail_prepared, worker, preparation))

    async def prepare_when_idle(self, host: str, preparation: Preparation) -> Prepared | None:
        """Has an idle worker on a host time a tail; None when there is none, or it did not answer."""
        seat = next(
            (seat for seat in self.seats if seat.is_idle and seat.worker is not None and seat.worker.host == host), None
        )
        if seat is None or seat.worker is None or self._queue:
            return None
        done: asyncio.Future[Prepared | OffloadError] = asyncio.get_running_loop().create_future()
        either: list[asyncio.Future[Any]] = [done, seat.worker.lost]
        self._prepare(seat, seat.worker, preparation, done.set_result)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        answer = done.result() if done.done() else None
        return answer if isinstance(answer, Prepared) else None

    def _prepare(
        self,
        seat: Seat,
        worker: Worker,
        preparation: Preparation,
        on_prepared: Callable[[Prepared | OffloadError], None],
    ) -> None:
        def finish(answer: Prepared | OffloadError) -> None:
            if seat.worker is not worker:
                return
            seat.is_preparing = False
            on_prepared(answer)
            self._release(seat)

        seat.is_preparing = True
        worker.prepare(preparation, finish)

    def _tail_prepared(self, worker: Worker, preparation: Preparation, answer: Prepared | OffloadError) -> None:
        if isinstance(answer, OffloadError):
            log.error("model %s..., %s: %s", preparation.digest[:12], preparation.plan, answer)
        self.on_prepared(worker, preparation, answer)

    def _start(self, seat: Seat, worker: Worker, job: QueuedJob) -> None:
        job.start(worker.host)
        seat.running.add(job)
        self.running.add(job)
        try:
            worker.run(job.job, lambda outcome: self._finish(seat, worker, job, outcome))
        except OffloadError as error:
            self._stop(seat, job)
            job.fail(error)

    def _finish(self, seat: Seat, worker: Worker, job: QueuedJob, outcome: Outcome | OffloadError) -> None:
        """Hands out an outcome; what can wait until it is on its way to the device does."""
        if seat.worker is not worker:  # it was given up meanwhile, and its jobs went to others
            return
        if isinstance(outcome, OffloadError):
            job.fail(outcome)
        else:
            job.succeed(outcome)
            self._deferred(self._hosts[job.host].slow_down.record, job.predicted_seconds, outcome.tail_seconds)
        self._stop(seat, job)
        self._release(seat)

    def _stop(self, seat: Seat, job: QueuedJob) -> None:
        seat.running.discard(job)
        self.running.discard(job)

    def _release(self, seat: Seat) -> None:
        if self._queue or seat.preparations:
            self.dispatch()
        self.on_change()
