"""Whether a job is taken: there must be room for it, and time before its deadline."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from loadpart_common.errors import OverloadedError, UnavailableError

if TYPE_CHECKING:
    from loadpart_edge.scheduling.builds import Builds
    from loadpart_edge.scheduling.dispatcher import Dispatcher
    from loadpart_edge.scheduling.hosts import Hosts
    from loadpart_edge.scheduling.job import Owner, QueuedJob
    from loadpart_edge.scheduling.queue import JobQueue

_LEAST_RETRY_SECONDS, _MOST_RETRY_SECONDS = 0.05, 10.0
_NO_WORKER_RETRY_SECONDS = 0.5


class Admission:
    """Refuses at once what would only wait in vain, and says when to ask again."""

    def __init__(self, queue: JobQueue, builds: Builds, dispatcher: Dispatcher, hosts: Hosts) -> None:
        self._queue = queue
        self._builds = builds
        self._dispatcher = dispatcher
        self._hosts = hosts

    def check_owner(self, owner: Owner, deadline: float) -> None:
        """Refuses a device before its request is read, when there is no worker, or its jobs fill all its time.

        Args:
            owner: Whose request it is.
            deadline: Until when its outcome is of use, on the clock `time.perf_counter`.

        Raises:
            UnavailableError: No worker is there.
            OverloadedError: See above.
        """
        if self._dispatcher.live_workers == 0:
            raise UnavailableError("no worker is there; one is being started", _NO_WORKER_RETRY_SECONDS)
        if self._queue:
            self._check_time(self.wait_seconds(owner), 0.0, deadline)

    def check(self, job: QueuedJob) -> None:
        """Refuses a job that has no room, cannot be done in time, or ended workers before.

        Raises:
            OverloadedError: There is no room, or no time.
            InternalError: Workers died over the same request before.
        """
        self._dispatcher.quarantine.check(job.tail, job.job)
        expected = job.predicted_seconds * self._hosts[job.host].slow_down.value
        self._check_time(self.wait_seconds(job.owner, job.predicted_seconds), expected, job.deadline)
        if len(self._queue) + len(self._builds) >= self._queue.limit:
            self._make_room(job.owner)

    def wait_seconds(self, owner: Owner, seconds: float | None = None) -> float:
        """Predicted seconds until a job of an owner is started that comes now.

        Args:
            owner: Whose job it is.
            seconds: Idle seconds of its tail; those of the owner's jobs that wait when None.
        """
        capacity, running = self._dispatcher.capacity, self._dispatcher.running
        if len(running) + len(self._queue) < capacity:
            return 0.0
        waiting = self._queue.seconds_ahead(owner, seconds) * self._hosts.slow_down if self._queue else 0.0
        return (self.running_seconds() + waiting) / capacity

    def running_seconds(self) -> float:
        """Predicted seconds that are left of the jobs that workers run, in all."""
        now = time.perf_counter()
        return sum(
            max(0.0, job.predicted_seconds * self._hosts[job.host].slow_down.value - (now - job.started_at))
            for job in self._dispatcher.running
        )

    def _check_time(self, wait: float, expected: float, deadline: float) -> None:
        late = time.perf_counter() + wait + expected - deadline
        if late > 0:
            raise OverloadedError(
                f"no time: the job would wait {wait:.3f} s and run {expected:.3f} s, {late:.3f} s beyond its deadline",
                min(max(late, _LEAST_RETRY_SECONDS), _MOST_RETRY_SECONDS),
            )

    def _make_room(self, owner: Owner) -> None:
        """Gives up the last job of the device that has most, for one with fewer.

        Raises:
            OverloadedError: This device has as many as any other.
        """
        victim = self._queue.last_of_greediest(owner)
        if victim is None:
            raise self._full(owner)
        self._queue.remove(victim)
        victim.fail(self._full(victim.owner))

    def _full(self, owner: Owner) -> OverloadedError:
        wait = self.wait_seconds(owner)
        return OverloadedError(
            f"the queue is full: expected fewer than {self._queue.limit} waiting jobs; "
            f"a job that came now would wait {wait:.3f} s",
            min(max(wait, _LEAST_RETRY_SECONDS), _MOST_RETRY_SECONDS),
        )
