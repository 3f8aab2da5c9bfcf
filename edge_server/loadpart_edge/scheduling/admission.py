"""Whether a job is taken: there must be room for it, and time before its deadline."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from loadpart_common.errors import OverloadedError, UnavailableError
from loadpart_edge.scheduling.job import due_at
from loadpart_edge.scheduling.pacing import Pacing

if TYPE_CHECKING:
    from loadpart_edge.scheduling.builds import Builds
    from loadpart_edge.scheduling.dispatcher import Dispatcher
    from loadpart_edge.scheduling.hosts import Hosts
    from loadpart_edge.scheduling.job import Owner, QueuedJob
    from loadpart_edge.scheduling.queue import JobQueue

_NO_WORKER_RETRY_SECONDS = 0.5
_LEAD_SHARE, _MOST_LEAD = 0.3, 2.0
"""A device that is ahead of the others by so many jobs leaves so much of the time to them, who then find room."""

_MOST_OWNERS = 4096
_LEAST_SECONDS = 1e-6


class Admission:
    """Refuses at once what would only wait in vain, and says when to ask again."""

    def __init__(self, queue: JobQueue, builds: Builds, dispatcher: Dispatcher, hosts: Hosts) -> None:
        self._queue = queue
        self._builds = builds
        self._dispatcher = dispatcher
        self._hosts = hosts
        self._pacing = Pacing()
        self._usual: OrderedDict[Owner, float] = OrderedDict()  # idle seconds of each device's last job

    def check_owner(self, owner: Owner, deadline: float) -> None:
        """Refuses a device before its request is read, when there is no worker, or no time for what it usually sends.

        Args:
            owner: Whose request it is.
            deadline: Until when its outcome is of use, on the clock `time.perf_counter`.

        Raises:
            UnavailableError: No worker is there.
            OverloadedError: See above.
        """
        if self._dispatcher.live_workers == 0:
            raise UnavailableError("no worker is there; one is being started", _NO_WORKER_RETRY_SECONDS)
        if self._queue and (usual := self._usual.get(owner)) is not None:
            self._check_time(owner, usual, self._hosts.slow_down, deadline)

    def check(self, job: QueuedJob) -> None:
        """Refuses a job that has no room, cannot be done in time, or ended workers before.

        Raises:
            OverloadedError: There is no room, or no time.
            InternalError: Workers died over the same request before.
        """
        self._dispatcher.quarantine.check(job.tail, job.job)
        self._remember(job)
        self._check_time(job.owner, job.predicted_seconds, self._hosts.slow_down, job.deadline)
        if len(self._queue) + len(self._builds) >= self._queue.limit:
            self._make_room(job)

    def wait_seconds(self, owner: Owner, seconds: float) -> float:
        """Predicted seconds until a job of an owner is started that comes now.

        Args:
            owner: Whose job it is.
            seconds: Idle seconds of its tail.
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
            for job in tuple(self._dispatcher.running)  # metrics are read on another thread
        )

    def _remember(self, job: QueuedJob) -> None:
        self._usual.pop(job.owner, None)
        self._usual[job.owner] = job.predicted_seconds
        if len(self._usual) > _MOST_OWNERS:
            self._usual.popitem(last=False)

    def _check_time(self, owner: Owner, seconds: float, slow_down: float, deadline: float) -> None:
        """Refuses what would be late, or make late what was taken before.

        Raises:
            OverloadedError: It is so.
        """
        if math.isinf(deadline):
            return
        now = time.perf_counter()
        due, expected, wait = due_at(now, deadline), seconds * slow_down, self.wait_seconds(owner, seconds)
        if not wait and expected <= deadline - now:
            return
        pace = slow_down / self._dispatcher.capacity
        begin = now + self.running_seconds() / self._dispatcher.capacity
        lead = min(self._queue.lead_seconds(owner) / max(seconds, _LEAST_SECONDS), _MOST_LEAD)
        late = max(
            now + wait + expected - due,
            self._queue.first_late(begin, seconds, due, pace),
            begin + self._queue.due_seconds * pace + expected - (due - lead * _LEAD_SHARE * (deadline - now)),
        )
        if late > 0:
            raise OverloadedError(
                f"no time: the job would wait {wait:.3f} s, run {expected:.3f} s, and has a deadline in "
                f"{max(deadline - now, 0.0):.3f} s",
                self._retry_seconds(owner, late, expected),
            )

    def _make_room(self, job: QueuedJob) -> None:
        """Gives up the last job of the device that has most, for one with fewer.

        Raises:
            OverloadedError: This device has as many as any other.
        """
        victim = self._queue.last_of_greediest(job.owner)
        if victim is None:
            raise self._full(job)
        self._queue.remove(victim)
        victim.fail(self._full(victim))

    def _full(self, job: QueuedJob) -> OverloadedError:
        wait = self.wait_seconds(job.owner, job.predicted_seconds)
        return OverloadedError(
            f"the queue is full: expected fewer than {self._queue.limit} waiting jobs; "
            f"a job that came now would wait {wait:.3f} s",
            self._retry_seconds(job.owner, wait, job.predicted_seconds * self._hosts.slow_down),
        )

    def _retry_seconds(self, owner: Owner, least: float, seconds: float) -> float:
        return self._pacing.retry_seconds(owner, least, seconds / self._dispatcher.capacity)
