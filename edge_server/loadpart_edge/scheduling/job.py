"""A job between its arrival and its outcome."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_edge.workers.base import Job, Outcome


class Owner(NamedTuple):
    """Whose a call is; capacity is shared out between parties first, and between the devices of a party then.

    Attributes:
        party: The client by its credential, or the host that it calls from: it cannot be chosen freely.
        device: What the device calls itself, which can.
    """

    party: str
    device: str = ""


NOBODY = Owner("")

_DUE_SHARE = 0.9
"""Of the time until a deadline, in which a job is to be done: predictions err, and the answer takes its way."""


def due_at(now: float, deadline: float) -> float:
    """When a job is to be done that comes now; infinite without a deadline."""
    return now + (deadline - now) * _DUE_SHARE


ANYWHERE = ""
"""For the name of a host: whichever takes the job."""


class Tail(NamedTuple):
    """What a worker must have built to run a job.

    Attributes:
        digest: SHA-256 of the model file, in hexadecimal.
        cut: Layers on the device.
        batch: Items of the batch.
    """

    digest: str
    cut: int
    batch: int


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
        owner: Whose it is.
        tail: What a worker must have built to run it.
        outcome: Done when the outcome is there; cancelled when nobody waits for it any more.
        host: The machine that a worker took it on; `ANYWHERE` before.
        predicted_seconds: Idle seconds of the tail there, for the whole batch.
        queued_at: When it arrived, on the clock `time.perf_counter`.
        deadline: Until when its outcome is of use, on that clock.
        due: When it is to be done, to be there before that.
        started_at: When a worker took it; 0 while it waits.
        attempts: Workers that have taken it.
        is_waiting: Whether it is in the queue.
    """

    __slots__ = (
        "attempts", "deadline", "due", "host", "is_waiting", "job", "outcome", "owner", "predict", "predicted_seconds",
        "queued_at", "started_at", "tail",
    )  # fmt: skip

    def __init__(
        self,
        job: Job,
        predict: Callable[[str], float],
        owner: Owner = NOBODY,
        deadline: float = math.inf,
    ) -> None:
        """Makes one.

        Args:
            job: What to run.
            predict: Gives the idle seconds of the tail on a host, or their mean for `ANYWHERE`.
            owner: Whose it is.
            deadline: Until when its outcome is of use, on the clock `time.perf_counter`.
        """
        self.job = job
        self.owner = owner
        self.tail = Tail(job.digest, job.plan.cut, job.batch)
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.predict = predict
        self.host = ANYWHERE
        self.predicted_seconds = predict(ANYWHERE)
        self.queued_at = time.perf_counter()
        self.deadline = deadline
        self.due = due_at(self.queued_at, deadline)
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
