"""Tails that were not built ahead: a device asks for one, and a worker builds it off the way of others' jobs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from loadpart_common.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_edge.scheduling.job import Owner, QueuedJob, Tail
    from loadpart_edge.workers.base import Preparation

BUILD_SHARE = 0.1
"""Of the workers' time that building may take while others use the server too."""

_ALONE_SECONDS = 2.0
"""A device is alone when no other one has sent a job for so long."""

_MOST_OF_A_DEVICE = 4
_MOST_OF_A_PARTY = 8
_MOST_OF_ALL = 16
_MOST_OWNERS = 1024
_RETRY_SECONDS = 1.0


class Build:
    """A tail that is to be built.

    Attributes:
        preparation: How a worker is told.
        tail: What it is.
        owner: Who asked first.
        waiting: Jobs that wait for it.
    """

    def __init__(self, preparation: Preparation, tail: Tail, owner: Owner) -> None:
        self.preparation = preparation
        self.tail = tail
        self.owner = owner
        self.waiting: list[QueuedJob] = []


class Builds:
    """The tails that are to be built, in turn by device, within a share of the workers' time.

    A new cut or batch size takes a worker 0.1 to 1 s. Without bounds one device could keep a worker building for it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._wanted: dict[Tail, Build] = {}
        self._free_at = 0.0
        self._device_free_at: dict[Owner, float] = {}
        self._seen_at: dict[Owner, float] = {}

    def __len__(self) -> int:
        """How many jobs wait for tails."""
        return sum(len(build.waiting) for build in self._wanted.values())

    def seen(self, owner: Owner) -> None:
        """Notes that a device has sent a job."""
        self._seen_at.pop(owner, None)
        self._seen_at[owner] = self._clock()
        if len(self._seen_at) > _MOST_OWNERS:
            del self._seen_at[next(iter(self._seen_at))]

    def ask(self, job: QueuedJob, make: Callable[[], Preparation]) -> None:
        """Has a job wait for its tail.

        Args:
            job: The job.
            make: Gives the preparation of its tail.

        Raises:
            OverloadedError: Too many tails are to be built already.
        """
        build = self._wanted.get(job.tail)
        if build is None:
            of_device = sum(each.owner == job.owner for each in self._wanted.values())
            of_party = sum(each.owner.party == job.owner.party for each in self._wanted.values())
            if of_device >= _MOST_OF_A_DEVICE or of_party >= _MOST_OF_A_PARTY or len(self._wanted) >= _MOST_OF_ALL:
                raise OverloadedError(
                    f"cut {job.tail.cut} for a batch of {job.tail.batch} is not built, and others are built before it",
                    max(self._seconds_until_free(job.owner), _RETRY_SECONDS),
                )
            build = self._wanted[job.tail] = Build(make(), job.tail, job.owner)
        build.waiting.append(job)

    def is_wanted(self, tail: Tail) -> bool:
        """Whether a tail is to be built, or is being built."""
        return tail in self._wanted

    def take(self) -> Build | None:
        """The next tail to build; None when none may be built now. It is wanted until `done`."""
        for build in self._wanted.values():
            build.waiting = [job for job in build.waiting if not job.outcome.done()]
            if build.waiting and self._seconds_until_free(build.owner) <= 0:
                return build
        for tail in [tail for tail, build in self._wanted.items() if not build.waiting]:
            del self._wanted[tail]
        return None

    def seconds_until_next(self) -> float | None:
        """Seconds until the next tail may be built; None when there is none."""
        return min((self._seconds_until_free(build.owner) for build in self._wanted.values()), default=None)

    def done(self, build: Build, seconds: float) -> list[QueuedJob]:
        """Notes that a tail was built, or could not be, and how long it took; gives the jobs that waited for it."""
        self._wanted.pop(build.tail, None)
        now, pause = self._clock(), seconds * (1 / BUILD_SHARE - 1)
        self._free_at = now + pause / 2  # two devices that build can have the share each
        self._device_free_at = {owner: at for owner, at in self._device_free_at.items() if at > now}
        self._device_free_at[build.owner] = now + pause
        return build.waiting

    def drain(self) -> list[QueuedJob]:
        """Takes out all jobs that wait."""
        jobs = [job for build in self._wanted.values() for job in build.waiting]
        self._wanted.clear()
        return jobs

    def _seconds_until_free(self, owner: Owner) -> float:
        """Seconds until a tail may be built for a device; 0 when nobody else would wait meanwhile."""
        now = self._clock()
        if all(other == owner or now - at > _ALONE_SECONDS for other, at in self._seen_at.items()):
            return 0.0
        return max(self._free_at, self._device_free_at.get(owner, 0.0)) - now
