"""Workers without a process, for tests of the scheduler."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.planning.plan import PlanKey
from loadpart_common.wire.framing import EncodedTensor
from loadpart_edge.workers.base import Job, Outcome, Preparation, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.errors import OffloadError
    from loadpart_edge.workers.base import OnOutcome, OnPrepared

CANARY = Preparation("digest", 0)


def job(number: int = 0) -> Job:
    """A job whose data is one byte, by which tests identify it."""
    return Job("digest", PlanKey(0, "raw"), 1, (EncodedTensor(np.dtype("uint8"), (1,), memoryview(bytes([number]))),))


class FakeWorker:
    """A worker that answers when the test calls `finish`; it builds tails immediately."""

    def __init__(self, seat: int, host: str, capacity: int) -> None:
        self.host, self.capacity, self.label = host, capacity, f"{host}-{seat}"
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.leaving: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.running: list[tuple[Job, OnOutcome]] = []
        self.prepared: list[Preparation] = []
        self.cancelled: list[Job] = []
        self.is_closed = False
        self.refusal: OffloadError | None = None
        self.starved = 0.0
        self.may_close = asyncio.Event()
        self.may_close.set()

    def run(self, job: Job, on_outcome: OnOutcome) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.running.append((job, on_outcome))

    def prepare(self, preparation: Preparation, on_prepared: OnPrepared) -> None:
        self.prepared.append(preparation)
        asyncio.get_running_loop().call_soon(on_prepared, Prepared(0.02, 1000))

    def finish(self, answer: Outcome | OffloadError | None = None) -> None:
        """Answers its oldest job; with the job's own bytes unless an answer is given."""
        done, on_outcome = self.running.pop(0)
        on_outcome(answer or Outcome(bytes(done.tensors[0].data), 0.01, 0.0))

    def cancel(self, job: Job) -> None:
        self.cancelled.append(job)

    def starved_seconds(self) -> float:
        return self.starved

    def kill(self) -> None:
        if not self.lost.done():
            self.die()

    def die(self) -> None:
        """Ends the worker; its jobs are lost."""
        self.lost.set_result(None)

    async def close(self) -> None:
        self.is_closed = True
        await self.may_close.wait()


class FakeWorkers:
    """Makes fake workers.

    Attributes:
        made: The workers, in the order in which they were made.
    """

    def __init__(self, *, hosts: tuple[str, ...] = ("fake",), capacity: int = 1) -> None:
        self._hosts, self._capacity = hosts, capacity
        self.made: list[FakeWorker] = []

    async def start(self, seat: int) -> FakeWorker:
        worker = FakeWorker(seat, self._hosts[seat % len(self._hosts)], self._capacity)
        self.made.append(worker)
        return worker


async def until(condition: Callable[[], bool]) -> None:
    """Waits until something holds; the test itself is bounded."""
    while not condition():  # noqa: ASYNC110  # nothing tells it
        await asyncio.sleep(0.001)
