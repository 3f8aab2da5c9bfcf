"""A worker's place, and what the worker in it has and does."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from loadpart_edge.scheduling.job import Tail

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadpart_edge.scheduling.job import QueuedJob
    from loadpart_edge.workers.base import Preparation, Worker


class Seat:
    """A worker's place.

    Attributes:
        index: Its number.
        worker: The worker in it; None while one is started.
        running: The jobs that the worker has.
        is_preparing: Whether it builds or times a tail.
        preparations: Tails that it has yet to build before it is at full strength.
        built: Tails that it has built.
        due_at: When what it does should long have been done, on the clock `time.perf_counter`; None while it is idle.
        is_wanted: Whether another worker is to follow the one that is in it.
        is_retiring: Whether the worker gets nothing more to do.
        retired: Done when a worker that gets nothing more to do has done what it had.
    """

    def __init__(self, index: int, preparations: Sequence[Preparation]) -> None:
        self.index = index
        self.worker: Worker | None = None
        self.is_wanted = True
        self.is_retiring = False
        self.retired: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.running: set[QueuedJob] = set()
        self.is_preparing = False
        self.preparations = deque(preparations)
        self.built: set[Tail] = set()
        self.due_at: float | None = None
        self._seen_due_at: float | None = None  # at the last look

    @property
    def is_idle(self) -> bool:
        """Whether the worker has nothing at all to do."""
        return self.worker is not None and not self.running and not self.is_preparing

    @property
    def is_prepared(self) -> bool:
        """Whether the worker has built all its tails."""
        return self.worker is not None and not self.preparations and not self.is_preparing

    def retire(self) -> None:
        """Has the worker end what it does, and nothing more."""
        self.is_retiring = True
        self.released()

    def released(self) -> None:
        """Notes that the worker has finished something."""
        if self.is_retiring and not self.running and not self.is_preparing and not self.retired.done():
            self.retired.set_result(None)

    def will_have(self, tail: Tail) -> bool:
        """Whether the worker has built a tail, or will without being asked."""
        return tail in self.built or any(tail_of(each) == tail for each in self.preparations)

    def expect(self, seconds: float) -> None:
        """Notes that the worker has begun something that it must have done after so many seconds."""
        self.due_at = time.perf_counter() + seconds

    def grant_starved_time(self, since_seconds: float) -> None:
        """Gives the worker as much more time as it lacked a core, if it does the same as at the last look.

        Args:
            since_seconds: Seconds since the last look.
        """
        if self.worker is None or self.due_at is None:
            self._seen_due_at = None
            return
        if self.due_at == self._seen_due_at:
            self.due_at += min(self.worker.starved_seconds(), since_seconds)
        self._seen_due_at = self.due_at

    def take_preparation(self, wanted: Iterable[Tail]) -> Preparation:
        """The next tail that it builds: one that a job waits for, or else the next in line."""
        for tail in wanted:
            for preparation in self.preparations:
                if tail_of(preparation) == tail:
                    self.preparations.remove(preparation)
                    return preparation
        return self.preparations.popleft()

    def empty(self, preparations: Sequence[Preparation]) -> set[QueuedJob]:
        """Forgets the worker, which is lost; gives the jobs that it had."""
        jobs, self.running = self.running, set()
        self.worker, self.is_preparing, self.due_at = None, False, None
        self.preparations = deque(preparations)
        self.built = set()
        self.is_retiring, self.retired = False, asyncio.get_running_loop().create_future()
        return jobs


def tail_of(preparation: Preparation) -> Tail:
    """The tail that a preparation builds."""
    return Tail(preparation.digest, preparation.cut, preparation.batch)
