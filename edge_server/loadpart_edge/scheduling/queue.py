"""The jobs that wait for a worker, first in, first out."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from loadpart_common.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_edge.workers.base import Job, Outcome

_LEAST_RETRY_SECONDS, _MOST_RETRY_SECONDS = 0.05, 10.0


class Served(NamedTuple):
    """What became of a job.

    Attributes:
        outcome: What the tail gave.
        queue_seconds: From the job's arrival to a worker's taking it.
        host: The machine that it ran on.
    """

    outcome: Outcome
    queue_seconds: float
    host: str


class QueuedJob:
    """A job between its arrival and its outcome.

    Attributes:
        job: What to run.
        outcome: Done when the outcome is there; cancelled when nobody waits for it any more.
        host: The machine that `predicted_seconds` is about.
        predicted_seconds: Idle seconds of the tail there, for the whole batch.
        queued_at: When it arrived, on the clock `time.perf_counter`.
        started_at: When a worker took it; 0 while it waits.
        attempts: Workers that have taken it.
        is_waiting: Whether it is in the queue.
    """

    __slots__ = (
        "attempts", "host", "is_waiting", "job", "outcome", "predict", "predicted_seconds", "queued_at", "started_at",
    )  # fmt: skip

    def __init__(self, job: Job, predict: Callable[[str], float], host: str) -> None:
        """Makes one.

        Args:
            job: What to run.
            predict: Gives the idle seconds of the tail on a host.
            host: The machine that it will probably run on.
        """
        self.job = job
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.predict = predict
        self.host = host
        self.predicted_seconds = predict(host)
        self.queued_at = time.perf_counter()
        self.started_at = 0.0
        self.attempts = 0
        self.is_waiting = False

    def start(self, host: str) -> None:
        """Notes that a worker on a host takes it now."""
        self.attempts += 1
        self.started_at = time.perf_counter()
        if host != self.host:
            self.host, self.predicted_seconds = host, self.predict(host)

    def succeed(self, outcome: Outcome) -> None:
        """Hands out the outcome."""
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def fail(self, error: Exception) -> None:
        """Hands out an error."""
        if not self.outcome.done():
            self.outcome.set_exception(error)


class JobQueue:
    """A bounded queue."""

    def __init__(self, limit: int) -> None:
        """Makes an empty queue of at most `limit` jobs."""
        self._limit = limit
        self._jobs: deque[QueuedJob] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def predicted_seconds(self) -> float:
        """Idle seconds of all jobs that wait."""
        return sum(job.predicted_seconds for job in self._jobs)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for one more job."""
        return len(self._jobs) >= self._limit

    def overloaded(self, backlog_seconds: float) -> OverloadedError:
        """The error that refuses one more job.

        Args:
            backlog_seconds: What one more job would wait; the error tells it as the time to ask again after.
        """
        return OverloadedError(
            f"the queue is full: expected fewer than {self._limit} waiting jobs; "
            f"a job that came now would wait {backlog_seconds:.3f} s",
            retry_after_seconds=min(max(backlog_seconds, _LEAST_RETRY_SECONDS), _MOST_RETRY_SECONDS),
        )

    def append(self, job: QueuedJob) -> None:
        """Adds a job at the end."""
        job.is_waiting = True
        self._jobs.append(job)

    def put_back(self, job: QueuedJob) -> None:
        """Adds a job that a lost worker had at the front."""
        job.is_waiting = True
        self._jobs.appendleft(job)

    def pop(self) -> QueuedJob:
        """Takes out the first job."""
        job = self._jobs.popleft()
        job.is_waiting = False
        return job

    def remove(self, job: QueuedJob) -> None:
        """Takes out a job that nobody waits for any more."""
        job.is_waiting = False
        self._jobs.remove(job)

    def drain(self) -> list[QueuedJob]:
        """Takes out all jobs."""
        return [self.pop() for _ in range(len(self._jobs))]
