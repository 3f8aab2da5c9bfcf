"""Queues jobs for the workers, keeps the workers alive, and knows how long a new job would wait."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from loadpart_common.errors import InternalError, OffloadError, OverloadedError
from loadpart_common.latency.slow_down import SlowDown
from loadpart_edge.scheduling.deferred import Later
from loadpart_edge.scheduling.load import Backlog
from loadpart_edge.workers.local.messages import Done, Failed, Prepare, Prepared, Run
from loadpart_edge.workers.local.process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadpart_common.tensors import Array
    from loadpart_edge.settings import Settings
    from loadpart_edge.workers.local.process import Answer

_CANARY_SECONDS = 2.0
_CANARY_SECONDS_SLOW = 0.3
_CANARY_FIRST_RUNS = 4
_CANARY_TOLERANCE = 1.5
_CANARY_ROW_SECONDS = 0.1
_SLOW = 1.1
"""A canary runs when no tail has for a while: soon when the last ones were slow, so that the server is not thought
loaded for longer than it is, and several times in a row then. What else runs on a core takes it in slices, and a short
run meets one of them or none; a row meets as many for its length as a long tail does."""

_ATTEMPTS = 2
"""Workers that may die over one job; after that it is the job that kills them."""

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What became of a job.

    Attributes:
        tensors: What the tail gave, as the field `tensors` of the response.
        queue_seconds: From the job's coming to a worker's taking it.
        build_seconds: Of building the tail, when it was not there.
        tail_seconds: Of the tail itself.
    """

    tensors: bytes
    queue_seconds: float
    build_seconds: float
    tail_seconds: float


@dataclass(eq=False, slots=True)
class _Job:
    message: Run
    tensors: list[Array]
    predicted_seconds: float
    outcome: asyncio.Future[Outcome]
    queued_at: float = field(default_factory=time.perf_counter)
    started_at: float = 0.0
    attempts: int = 0

    def fail(self, error: Exception) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


@dataclass(eq=False, slots=True)
class _Seat:
    """A worker's place: the process that is in it, whether it works, and what it has yet to prepare."""

    index: int
    preparations: deque[Prepare]
    worker: WorkerProcess | None = None
    busy: bool = False


class Scheduler:
    """A bounded first-in first-out queue in front of worker processes.

    A job goes to an idle worker within the same turn of the event loop that brings it, and its outcome to whoever
    waits within the turn that brings the answer: on a quiet machine every further turn costs a tenth of a millisecond.

    Attributes:
        on_change: Called when the queue has changed.
        later: Runs what can wait.
        slow_down: Measured over predicted time of the latest jobs, or of the canary when there are none.
        backlog: Its means.
        restarts: Workers that died and were replaced.
    """

    def __init__(
        self,
        settings: Settings,
        preparations: Sequence[Prepare],
        *,
        canary: Prepare | None = None,
        on_prepared: Callable[[Prepare, Prepared | None], None],
    ) -> None:
        """Makes a scheduler; `start` starts the workers.

        Args:
            settings: Settings of the daemon.
            preparations: Tails that every worker builds while it has nothing else to do.
            canary: A short tail, one of `preparations`, that is run now and then while nothing else is.
            on_prepared: Called for each that is built, or (with None) could not be.
        """
        self._settings = settings
        self._preparations = preparations
        self._canary = canary
        self._canary_seconds = 0.0
        self._on_prepared = on_prepared
        self.on_change: Callable[[], None] = lambda: None
        self._queue: deque[_Job] = deque()
        self._running: dict[_Seat, _Job] = {}
        self._seats = [_Seat(index, deque(preparations)) for index in range(settings.workers)]
        self._tasks: list[asyncio.Task[None]] = []
        self._prepared = asyncio.Event()
        self._idle = asyncio.Event()
        self.later = Later()
        self._is_change_due = False
        self.slow_down = SlowDown()
        self.backlog = Backlog()
        self.restarts = 0

    async def start(self) -> None:
        """Starts the workers and waits until each has built its tails.

        Raises:
            InternalError: A worker died.
        """
        self._tasks = [asyncio.create_task(self._keep(seat)) for seat in self._seats]
        prepared = asyncio.create_task(self._prepared.wait())
        done, _ = await asyncio.wait([prepared, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
        prepared.cancel()
        for task in done - {prepared}:
            task.result()  # it ends only by an error
        self._tasks.append(asyncio.create_task(self._keep_fresh()))

    async def run(self, message: Run, tensors: list[Array], predicted_seconds: float) -> Outcome:
        """Queues a job and waits for its outcome; cancelling takes it out of the queue.

        Raises:
            OverloadedError: The queue is full.
            InternalError: Workers died over it.
            OffloadError: It cannot be done.
        """
        if len(self._queue) >= self._settings.queue_limit:
            raise OverloadedError(
                f"the queue is full: expected fewer than {self._settings.queue_limit} waiting jobs; "
                f"a job that came now would wait {self.backlog_seconds:.3f} s"
            )
        job = _Job(message, tensors, predicted_seconds, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self._dispatch()
        self._changed_soon()
        try:
            return await job.outcome
        finally:
            if job in self._queue:  # whoever waited has gone away
                self._queue.remove(job)
                self._changed()

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
        if len(self._running) + len(self._queue) < len(self._seats):
            return 0.0
        slow_down, now = self.slow_down.value, time.perf_counter()
        running = self._running.values()
        left = sum(max(0.0, job.predicted_seconds * slow_down - (now - job.started_at)) for job in running)
        waiting = sum(job.predicted_seconds for job in self._queue) * slow_down
        return (left + waiting) / len(self._seats)

    async def drained(self) -> None:
        """Waits until nothing is queued or running."""
        while self._queue or self._running:
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        """Ends the workers; jobs that are left fail."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for job in [*self._queue, *self._running.values()]:
            job.fail(InternalError("the server has shut down"))

    def _dispatch(self) -> None:
        """Gives idle workers what there is to do: jobs first, then preparations."""
        for seat in self._seats:
            if seat.worker is None or seat.busy:
                continue
            if self._queue:
                self._start_job(seat, seat.worker, self._queue.popleft())
            elif seat.preparations:
                self._start_preparation(seat, seat.worker, seat.preparations.popleft())

    def _start_preparation(self, seat: _Seat, worker: WorkerProcess, preparation: Prepare) -> None:
        seat.busy = True
        worker.request(preparation, [], lambda answer: self._finish_preparation(seat, preparation, answer))

    def _start_job(self, seat: _Seat, worker: WorkerProcess, job: _Job) -> None:
        job.attempts += 1
        job.started_at = time.perf_counter()
        seat.busy, self._running[seat] = True, job
        try:
            worker.request(job.message, job.tensors, lambda answer: self._finish_job(seat, worker, job, answer))
        except OffloadError as error:
            job.fail(error)
            self._release(seat)

    def _finish_job(self, seat: _Seat, worker: WorkerProcess, job: _Job, answer: Answer) -> None:
        """Hands out an outcome; what can wait until it is on its way to the device does."""
        if isinstance(answer, Done):
            tensors = worker.slot.read(answer.nbytes)
            waited = job.started_at - job.queued_at
            if not job.outcome.done():
                job.outcome.set_result(Outcome(tensors, waited, answer.build_seconds, answer.seconds))
            self.later(self.slow_down.record, job.predicted_seconds, answer.seconds)
        elif isinstance(answer, Failed):
            job.fail(answer.error)
        self._release(seat)

    def _finish_preparation(self, seat: _Seat, preparation: Prepare, answer: Answer) -> None:
        if isinstance(answer, Failed):
            log.error("model %s, cut %d: %s", preparation.model, preparation.cut, answer.error)
        if preparation == self._canary and isinstance(answer, Prepared):
            self._canary_seconds = answer.seconds
        self._on_prepared(preparation, answer if isinstance(answer, Prepared) else None)
        self._release(seat)
        if not any(each.preparations or each.busy or each.worker is None for each in self._seats):
            self._prepared.set()

    def _release(self, seat: _Seat) -> None:
        seat.busy = False
        self._running.pop(seat, None)
        self._idle.set()
        if self._queue or seat.preparations:
            self._dispatch()
        self._changed_soon()

    def _changed_soon(self) -> None:
        if not self._is_change_due:
            self._is_change_due = True
            self.later(self._changed)

    def _changed(self) -> None:
        self._is_change_due = False
        self.backlog.changed(self.backlog_seconds, self.running / len(self._seats))
        self.on_change()

    async def _keep_fresh(self) -> None:
        """Runs the canary on an idle worker when nothing has told the slow-down for a while.

        Otherwise a server that was slow once, and that all devices have left since, would be thought slow for ever;
        and one that something else slows down would be thought quick until the first device has found out. The first
        few runs tell what it takes after a pause, which is a little longer than one run right after another.
        """
        if self._canary is None:
            return
        expected = dict.fromkeys((0.0, _CANARY_ROW_SECONDS), self._canary_seconds * _CANARY_TOLERANCE)
        for _ in range(_CANARY_FIRST_RUNS):
            await asyncio.sleep(_CANARY_SECONDS_SLOW)
            for row in expected:
                if (seconds := await self._run_canary(self._canary, row)) is not None:
                    expected[row] = min(expected[row], seconds)
        while True:
            is_slow = self.slow_down.value > _SLOW
            period, row = (_CANARY_SECONDS_SLOW, _CANARY_ROW_SECONDS) if is_slow else (_CANARY_SECONDS, 0.0)
            await asyncio.sleep(max(period - self.slow_down.age_seconds, _CANARY_SECONDS_SLOW))
            if self.slow_down.age_seconds < period:
                continue
            if (seconds := await self._run_canary(self._canary, row)) is not None:
                self.slow_down.record(expected[row], seconds)
                self._changed()

    async def _run_canary(self, canary: Prepare, row_seconds: float) -> float | None:
        """Mean seconds of runs of the canary that together take so long, or until there is a job; None without any."""
        took: list[float] = []
        while (not took or sum(took) < row_seconds) and (seconds := await self._run_canary_once(canary)) is not None:
            took.append(seconds)
        return statistics.mean(took) if took else None

    async def _run_canary_once(self, canary: Prepare) -> float | None:
        """Seconds of a run of the canary; None when no worker is idle, or it did not run."""
        idle = [seat for seat in self._seats if seat.worker is not None and not seat.busy]
        if not idle or self._queue:
            return None
        seat, worker = idle[0], idle[0].worker
        assert worker is not None
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        lost = worker.lost
        seat.busy = True

        def finish(answer: Answer) -> None:
            done.set_result(answer)
            self._release(seat)

        worker.request(canary._replace(runs=1), [], finish)
        first: list[asyncio.Future[Any]] = [done, lost]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            return None
        answer = done.result()
        return answer.seconds if isinstance(answer, Prepared) else None

    async def _keep(self, seat: _Seat) -> None:
        """Keeps a worker in a seat: starts it, and another when it dies."""
        while True:
            worker = await WorkerProcess.start(self._settings, seat.index)
            seat.worker = worker
            try:
                self._dispatch()
                await worker.lost
            finally:
                seat.worker = None
                with contextlib.suppress(asyncio.CancelledError):
                    await worker.close()
            if not self._prepared.is_set():
                raise InternalError(f"worker {worker.pid} died while it started; its log is above")
            log.error("worker %d died; a new one is started", worker.pid)
            self.restarts += 1
            job, seat.busy = self._running.pop(seat, None), False
            seat.preparations = deque(self._preparations)
            if job is not None and job.attempts < _ATTEMPTS:
                self._queue.appendleft(job)
            elif job is not None:
                job.fail(InternalError("workers died over this job; it is given up"))
            self._dispatch()
