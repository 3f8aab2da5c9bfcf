"""Gives waiting jobs to idle workers, and hands out what they answer."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from loadpart_common.errors import DeadlineError, InternalError, OffloadError
from loadpart_edge.scheduling.quarantine import Quarantine
from loadpart_edge.scheduling.seat import Seat, tail_of
from loadpart_edge.workers.base import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadpart_edge.scheduling.builds import Build, Builds
    from loadpart_edge.scheduling.deferred import Deferred
    from loadpart_edge.scheduling.hosts import Hosts
    from loadpart_edge.scheduling.job import QueuedJob, Tail
    from loadpart_edge.scheduling.queue import JobQueue
    from loadpart_edge.workers.base import Outcome, Preparation, Worker

_ATTEMPTS = 2
"""Workers that may die or hang over one job; after that it is the job that kills them."""

_HOPE = 0.95
"""A job is dropped when its deadline leaves less than this share of the time that its tail is predicted to take."""

_CLEARLY = 0.9
"""A job waits for a quicker worker when it would be done within this share of the time that an idle one takes."""

_HOLD_SECONDS = 0.02
"""After which a job that waits for a quicker worker is looked at again, whatever happens."""

# How long a worker may take before it counts as hung: many times what was predicted, and a time in which a machine that
# is busy with something else, or pages, comes back.
_HUNG_FACTOR = 10.0
_HUNG_SECONDS = 2.0
_BUILD_SECONDS = 60.0
_FIRST_BUILD_SECONDS = 300.0  # importing the engine from a cold disk included

log = logging.getLogger(__name__)


class Dispatcher:
    """Seats, and the jobs that their workers run.

    A job goes to an idle worker within the same turn of the event loop that brings it, and its outcome to whoever
    waits within the turn that brings the answer: on a quiet machine every further turn costs a tenth of a millisecond.

    Attributes:
        seats: The workers' places.
        running: The jobs that workers have.
        capacity: How many jobs the workers that are there take at once; 1 when there is none.
        quarantine: Requests that workers did not survive.
        on_change: Called when a worker has come, has finished something, or is lost.
        on_prepared: Called with worker, preparation and result when a worker has built one of its tails, or (with an
            error) could not.
        on_dropped: Called when a job was dropped because its deadline had passed.
    """

    def __init__(
        self,
        queue: JobQueue,
        builds: Builds,
        hosts: Hosts,
        deferred: Deferred,
        seats: int,
        preparations: Sequence[Preparation],
    ) -> None:
        """Makes a dispatcher whose seats are empty.

        Args:
            queue: The jobs that wait.
            builds: The tails that devices have asked for.
            hosts: Learns the slow-down from each tail.
            deferred: Runs what can wait until a reply is sent.
            seats: How many workers there will be.
            preparations: Tails that every worker builds while it has nothing else to do.
        """
        self._queue = queue
        self._builds = builds
        self._hosts = hosts
        self._deferred = deferred
        self._preparations = preparations
        self._retry: asyncio.TimerHandle | None = None
        self._holds = False  # whether a job waits for a quicker worker than one that is idle
        self.seats = [Seat(index, preparations) for index in range(seats)]
        self.running: set[QueuedJob] = set()
        self.capacity = 1
        self.quarantine = Quarantine()
        self.on_change: Callable[[], None] = lambda: None
        self.on_prepared: Callable[[Worker, Preparation, Prepared | OffloadError], None] = lambda *_: None
        self.on_dropped: Callable[[], object] = lambda: None

    @property
    def prepared_workers(self) -> int:
        """Workers that are there and have built their tails."""
        return sum(seat.is_prepared for seat in self.seats)

    @property
    def live_workers(self) -> int:
        """Workers that are there."""
        return sum(seat.worker is not None for seat in self.seats)

    @property
    def tails_to_build(self) -> int:
        """Tails that workers have yet to begin to build, those of workers that are being started among them."""
        return sum(len(seat.preparations) for seat in self.seats)

    def add_seat(self) -> Seat:
        """One more seat, with the smallest number that is free."""
        taken = {seat.index for seat in self.seats}
        index = next(index for index in range(len(taken) + 1) if index not in taken)
        seat = Seat(index, self._preparations)
        self.seats.append(seat)
        return seat

    def worth(self, seat: Seat) -> tuple[bool, bool, float, bool]:
        """What orders seats by what is lost without them: no worker, one that leaves, a slow, an idle, a busy one."""
        if seat.worker is None:
            return False, False, 0.0, False
        host = self._hosts[seat.worker.host]
        return True, not seat.is_retiring, -host.canary_seconds * host.slow_down.value, not seat.is_idle

    def remove_seat(self, seat: Seat) -> None:
        """Does without a seat, whose worker has gone."""
        self.seats.remove(seat)
        self.on_change()

    def has_built(self, tail: Tail) -> bool:
        """Whether some worker has a tail, or will have it without being asked."""
        return any(seat.will_have(tail) for seat in self.seats)

    def fill(self, seat: Seat, worker: Worker) -> None:
        """Puts a worker into a seat, and gives it what there is to do."""
        seat.worker = worker
        self._hosts.joined(worker.host)
        self._count_capacity()
        self.dispatch()
        self.on_change()

    def vacate(self, seat: Seat) -> None:
        """Notes that a seat's worker is lost: its jobs go to others, unless they have killed a worker before."""
        if seat.worker is not None:
            self._hosts.left(seat.worker.host)
        jobs = seat.empty(self._preparations)
        self._count_capacity()
        self.running -= jobs
        for job in sorted(jobs, key=lambda job: job.queued_at, reverse=True):
            if job.attempts < _ATTEMPTS:
                self._queue.put_back(job)
            else:
                self.quarantine.add(job.tail, job.job)
                job.fail(InternalError("workers died over this job; it is given up"))
        self.dispatch()
        self.on_change()

    def kill_hung(self, now: float, since_seconds: float = 0.0) -> list[Worker]:
        """Ends the workers that should long have answered, and gives them.

        A worker gets as much more time as it wanted a core and had none: a busy machine is not a worker that hangs.

        Args:
            now: Time on the clock `time.perf_counter`.
            since_seconds: Seconds since it was last looked for them.
        """
        for seat in self.seats:
            seat.grant_starved_time(since_seconds)
        hung = [
            seat.worker
            for seat in self.seats
            if seat.worker is not None and seat.due_at is not None and now > seat.due_at
        ]
        for worker in hung:
            worker.kill()
        return hung

    def delay(self, seconds: float) -> None:
        """Gives all workers so much more time: the whole machine, or this process, stood still."""
        for seat in self.seats:
            if seat.due_at is not None:
                seat.due_at += seconds

    def cancel(self, job: QueuedJob) -> None:
        """Tells the worker that has a job that nobody waits for it any more."""
        for seat in self.seats:
            if job in seat.running and seat.worker is not None:
                seat.worker.cancel(job.job)

    def dispatch(self) -> None:
        """Gives workers what there is to do: a tail that a device waits for and may have built, jobs, preparations."""
        self._holds = False
        for seat in self.seats:
            worker = seat.worker
            if worker is None or seat.is_preparing or seat.is_retiring:
                continue
            if not seat.running and len(self._builds) and (build := self._builds.take()) is not None:
                self._build(seat, worker, build)
                continue
            while len(seat.running) < worker.capacity and (job := self._next_job(seat, worker.host)) is not None:
                self._start(seat, worker, job)
            if seat.preparations and not seat.running:
                preparation = seat.take_preparation(job.tail for job in self._queue.next_jobs())
                self._prepare(seat, worker, preparation, partial(self._tail_prepared, worker, preparation))
        if self._retry is None and (len(self._builds) or self._holds):
            delay = _HOLD_SECONDS if self._holds else max(self._builds.seconds_until_next() or 0.0, 0.01)
            self._retry = asyncio.get_running_loop().call_later(delay, self._dispatch_again)

    async def prepare_when_idle(self, host: str, preparation: Preparation) -> Prepared | None:
        """Has an idle worker on a host time a tail; None when there is none, or it did not answer."""
        seat = next(
            (seat for seat in self.seats if seat.is_idle and seat.worker is not None and seat.worker.host == host), None
        )
        if seat is None or seat.worker is None or self._queue or len(self._builds):
            return None
        done: asyncio.Future[Prepared | OffloadError] = asyncio.get_running_loop().create_future()
        either: list[asyncio.Future[Any]] = [done, seat.worker.lost]
        self._prepare(seat, seat.worker, preparation, done.set_result)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        answer = done.result() if done.done() else None
        return answer if isinstance(answer, Prepared) else None

    def _dispatch_again(self) -> None:
        self._retry = None
        self.dispatch()

    def _count_capacity(self) -> None:
        self.capacity = max(sum(seat.worker.capacity for seat in self.seats if seat.worker is not None), 1)

    def _next_job(self, seat: Seat, host: str) -> QueuedJob | None:
        """The next job for a seat that can still be done in time; those that cannot are dropped."""
        if not self._queue:
            return None
        while (job := self._take_job(partial(self._runs, seat, host, {}))) is not None:
            left = job.deadline - time.perf_counter()
            if job.outcome.done():
                continue
            if left > self._seconds(job, host) * _HOPE:
                return job
            job.fail(DeadlineError(f"expected time for the tail, but the deadline is {max(left, 0.0):.3f} s away"))
            self.on_dropped()
        return None

    def _take_job(self, runs: Callable[[QueuedJob], bool]) -> QueuedJob | None:
        pace = self._hosts.slow_down / self.capacity
        following = next(self._queue.next_jobs(), None)
        if following is None:
            return None
        pressing = self._queue.pressing(time.perf_counter() + following.predicted_seconds * pace, pace)
        if pressing is None or not runs(pressing):
            return self._queue.pop(runs)
        self._queue.take(pressing)
        return pressing

    def _runs(self, seat: Seat, host: str, promised: dict[int, float], job: QueuedJob) -> bool:
        """Whether a job may run on a seat: its tail is built there, and no other worker will have done it sooner.

        Or no worker will ever have its tail.

        Args:
            seat: The seat.
            host: The machine that its worker is on.
            promised: Seconds of the jobs that wait for a worker that is quicker, by its seat; this one is added.
            job: The job.
        """
        if job.tail not in seat.built:
            return not any(each.will_have(job.tail) for each in self.seats)
        rivals = []
        for other in self.seats:
            worker = other.worker
            if worker is None or worker.host == host or job.tail not in other.built:
                continue
            if not other.is_preparing and not other.is_retiring:
                seconds = self._seconds(job, worker.host)
                free = self._seconds_until_free(other, worker) + promised.get(other.index, 0.0)
                rivals.append((free + seconds, seconds, other.index))
        if not rivals:
            return True
        end, seconds, index = min(rivals)
        if end >= self._seconds(job, host) * _CLEARLY:
            return True
        promised[index] = promised.get(index, 0.0) + seconds
        self._holds = True
        return False

    def _seconds(self, job: QueuedJob, host: str) -> float:
        """What a job takes on a machine, and on the way there and back."""
        known = self._hosts[host]
        return job.predict(host) * known.slow_down.value + known.dispatch.value

    def _seconds_until_free(self, seat: Seat, worker: Worker) -> float:
        """Until a worker takes one more job; one that is late is expected to be as late again."""
        if len(seat.running) < worker.capacity:
            return 0.0
        now = time.perf_counter()
        return min(abs(self._seconds(job, worker.host) - (now - job.started_at)) for job in seat.running)

    def _build(self, seat: Seat, worker: Worker, build: Build) -> None:
        """Has a worker build a tail that a device asked for, and queues the jobs that wait for it."""
        started = time.perf_counter()

        def built(answer: Prepared | OffloadError) -> None:
            seconds = time.perf_counter() - started
            self._queue.charge(build.owner, seconds)
            for job in self._builds.done(build, seconds):
                if isinstance(answer, OffloadError):
                    job.fail(answer)
                elif not job.outcome.done():
                    self._queue.append(job)

        self._prepare(seat, worker, build.preparation, built)

    def _prepare(
        self,
        seat: Seat,
        worker: Worker,
        preparation: Preparation,
        on_prepared: Callable[[Prepared | OffloadError], None],
    ) -> None:
        tail = tail_of(preparation)

        def finish(answer: Prepared | OffloadError) -> None:
            if seat.worker is not worker:
                return
            seat.is_preparing, seat.due_at = False, None
            if isinstance(answer, Prepared):
                seat.built.add(tail)
                self._forget(seat, answer.dropped)
            on_prepared(answer)
            self._release(seat)

        seat.is_preparing = True
        if tail in seat.built:
            seat.expect(_HUNG_SECONDS)
        else:
            seat.expect(_BUILD_SECONDS if seat.built else _FIRST_BUILD_SECONDS)
        worker.prepare(preparation, finish)

    def _tail_prepared(self, worker: Worker, preparation: Preparation, answer: Prepared | OffloadError) -> None:
        if isinstance(answer, OffloadError):
            log.error("model %s..., cut %d: %s", preparation.digest[:12], preparation.cut, answer)
        self.on_prepared(worker, preparation, answer)

    def _start(self, seat: Seat, worker: Worker, job: QueuedJob) -> None:
        job.start(worker.host)
        seat.running.add(job)
        self.running.add(job)
        expected = job.predicted_seconds * self._hosts[worker.host].slow_down.value
        seat.expect(
            _HUNG_SECONDS
            + _HUNG_FACTOR * expected * len(seat.running)
            + (0.0 if job.tail in seat.built else _BUILD_SECONDS)
        )
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
            if outcome.build_seconds:
                seat.built.add(job.tail)
            self._forget(seat, outcome.dropped)
            host = self._hosts[job.host]
            self._deferred(host.slow_down.record, job.predicted_seconds, outcome.run_seconds)
            if worker.capacity == 1:  # or it may have waited for another job there
                took = time.perf_counter() - job.started_at
                self._deferred(host.dispatch.add, took - outcome.run_seconds - outcome.build_seconds)
        self._stop(seat, job)
        self._release(seat)

    @staticmethod
    def _forget(seat: Seat, dropped: Sequence[tuple[str, int, int]]) -> None:
        if dropped:
            seat.built.difference_update(dropped)

    def _stop(self, seat: Seat, job: QueuedJob) -> None:
        seat.running.discard(job)
        self.running.discard(job)
        if not seat.running:
            seat.due_at = None

    def _release(self, seat: Seat) -> None:
        seat.released()
        if self._queue or seat.preparations or len(self._builds):
            self.dispatch()
        self.on_change()
