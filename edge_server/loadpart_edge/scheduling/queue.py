"""The jobs that wait for a worker: shared out fairly between devices, as long as deadlines leave the choice."""

from __future__ import annotations

import bisect
import math
from collections import deque
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadpart_edge.scheduling.job import Owner, QueuedJob

_MOST_KEPT = 256
"""Idle devices of a party, and idle parties, whose use is remembered: their names come from strangers."""


class _Share:
    """A part of the capacity, in the manner of start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996).

    Attributes:
        seconds: Idle seconds of the jobs that wait in it.
        used: Its virtual time: idle seconds that it has been given, no less than the clock of the share around it
            when it last began to wait. The share that was given least is next.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.used = 0.0


class _Lane(_Share):
    """The jobs of one device, first in, first out."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: deque[QueuedJob] = deque()


class _Party(_Share):
    """The devices of one party.

    Attributes:
        jobs: How many wait.
        clock: Virtual time: the least of the lanes that wait, never going back.
    """

    def __init__(self) -> None:
        super().__init__()
        self.jobs = 0
        self.clock = 0.0
        self.lanes: dict[str, _Lane] = {}


class JobQueue:
    """A bounded queue that serves parties in turn by what they were given, and within a party its devices.

    Whoever sends much waits for its own jobs, not the others for them: a device with one job is served before the
    second one of a device with a hundred. Jobs with deadlines are served in order of these instead (earliest deadline
    first, Liu and Layland 1973) as soon as one of them would come too late otherwise: what was taken is done in time.
    """

    def __init__(self, limit: int) -> None:
        """Makes an empty queue of at most `limit` jobs."""
        self.limit = limit
        self._length = 0
        self._clock = 0.0
        self._parties: dict[str, _Party] = {}
        self._by_due: list[QueuedJob] = []  # those with a deadline

    def __len__(self) -> int:
        return self._length

    @property
    def predicted_seconds(self) -> float:
        """Idle seconds of all jobs that wait."""
        return sum([party.seconds for party in list(self._parties.values())])

    @property
    def is_full(self) -> bool:
        """Whether there is no room for one more job."""
        return self._length >= self.limit

    def seconds_ahead(self, owner: Owner, seconds: float) -> float:
        """Idle seconds of the jobs that would be served before one more of an owner.

        Its own jobs are, and as much of everybody else's as it would then have had itself.

        Args:
            owner: Whose job it would be.
            seconds: Idle seconds of the job.
        """
        party = self._parties.get(owner.party)
        lane = party.lanes.get(owner.device) if party else None
        own = lane.seconds if lane else 0.0
        ahead = own
        if party:
            ahead += sum(min(each.seconds, own + seconds) for each in party.lanes.values() if each is not lane)
        of_party = ahead + seconds
        return ahead + sum(min(each.seconds, of_party) for each in self._parties.values() if each is not party)

    @property
    def newcomer_seconds(self) -> float:
        """Idle seconds of the jobs that are served before one of a device with none waiting, of the mean length."""
        if not self._length:
            return 0.0
        own = self.predicted_seconds / max(self._length, 1)
        parties = list(self._parties.values())  # metrics are read on another thread, while devices come and go
        return sum([min(lane.seconds, own) for party in parties for lane in list(party.lanes.values())])

    def lead_seconds(self, owner: Owner) -> float:
        """Idle seconds by which a device is ahead of those beside it: what it was given and what it has waiting.

        Between parties and between the devices of its party, whichever is more; nothing where nobody else waits.
        """
        party = self._parties.get(owner.party)
        if party is None:
            return 0.0
        lane = party.lanes.get(owner.device)
        leads = [0.0]
        if party.jobs < self._length:
            leads.append(max(party.used - self._clock, 0.0) + party.seconds)
        if lane is not None and len(lane.jobs) < party.jobs:
            leads.append(max(lane.used - party.clock, 0.0) + lane.seconds)
        return max(leads)

    @property
    def due_seconds(self) -> float:
        """Idle seconds of the jobs with a deadline."""
        return sum([job.predicted_seconds for job in self._by_due])

    def first_late(self, begin: float, seconds: float, due: float, pace: float) -> float:
        """By how many seconds jobs would be late, at most, in order of their deadlines, with one more among them.

        Args:
            begin: When the first of them would be started.
            seconds: Idle seconds of the one more.
            due: When it is to be done.
            pace: Seconds that an idle second takes now.
        """
        end, late = begin + seconds * pace, -math.inf
        is_in = False
        for job in self._by_due:
            if not is_in and job.due > due:
                is_in, late = True, max(late, end - due)
            end += job.predicted_seconds * pace
            if is_in:
                late = max(late, end - job.due)
        return late if is_in else max(late, end - due)

    def pressing(self, begin: float, pace: float) -> QueuedJob | None:
        """The job with the earliest deadline, if one of those with deadlines would be late unless it is run now.

        Args:
            begin: When it would be started if another one were run first.
            pace: Seconds that an idle second takes now.
        """
        end = begin
        for job in self._by_due:
            end += job.predicted_seconds * pace
            if end > job.due:
                return self._by_due[0]
        return None

    def append(self, job: QueuedJob) -> None:
        """Adds a job as the last one of its device."""
        self._lane(job.owner).jobs.append(job)
        self._add(job)

    def put_back(self, job: QueuedJob) -> None:
        """Adds a job that a lost worker had as the first one of its device."""
        self._lane(job.owner).jobs.appendleft(job)
        self._add(job)

    def pop(self, runs: Callable[[QueuedJob], bool] = lambda _: True) -> QueuedJob | None:
        """Takes out the job that is next; None when there is none.

        Args:
            runs: Whether a job can be run by whoever asks; devices whose first job cannot are passed over.
        """
        job = next((lane.jobs[0] for _, lane in self._in_turn() if runs(lane.jobs[0])), None)
        if job is not None:
            self.take(job)
        return job

    def take(self, job: QueuedJob) -> None:
        """Takes out a job to be run: its device is given its seconds."""
        party = self._parties[job.owner.party]
        lane = party.lanes[job.owner.device]
        self._clock = max(self._clock, min(each.used for each in self._parties.values() if each.jobs))
        party.clock = max(party.clock, min(each.used for each in party.lanes.values() if each.jobs))
        party.used += job.predicted_seconds
        lane.used += job.predicted_seconds
        self.remove(job)

    def charge(self, owner: Owner, seconds: float) -> None:
        """Counts seconds that a worker spent for a device on something else than its jobs as given to it."""
        lane = self._lane(owner)
        party = self._parties[owner.party]
        party.used = max(party.used, self._clock) + seconds
        lane.used = max(lane.used, party.clock) + seconds

    def next_jobs(self) -> Iterator[QueuedJob]:
        """The first job of each device, the one that is next first."""
        return (lane.jobs[0] for _, lane in self._in_turn())

    def remove(self, job: QueuedJob) -> None:
        """Takes out a job, which is not run."""
        self._parties[job.owner.party].lanes[job.owner.device].jobs.remove(job)
        self._drop(job)

    def last_of_greediest(self, owner: Owner) -> QueuedJob | None:
        """The last job of the device that has most, if that device would have more than one more job's owner then has.

        It makes room in a full queue for a device with fewer jobs.
        """
        party = max(self._parties.values(), key=lambda each: each.seconds, default=None)
        own_party = self._parties.get(owner.party)
        if party is None or (party is not own_party and own_party and party.seconds <= own_party.seconds):
            party = own_party
        if party is None:
            return None
        lane = max(party.lanes.values(), key=lambda each: len(each.jobs))
        own = party.lanes.get(owner.device) if party is own_party else None
        if len(lane.jobs) < 2 or lane is own or (own and len(lane.jobs) <= len(own.jobs) + 1):
            return None
        return lane.jobs[-1]

    def drain(self) -> list[QueuedJob]:
        """Takes out all jobs."""
        taken = []
        while (job := self.pop()) is not None:
            taken.append(job)
        return taken

    def _in_turn(self) -> Iterator[tuple[_Party, _Lane]]:
        """The lanes with jobs, the one that is next first."""
        for party in _by_use([each for each in self._parties.values() if each.jobs]):
            for lane in _by_use([each for each in party.lanes.values() if each.jobs]):
                yield party, lane

    def _lane(self, owner: Owner) -> _Lane:
        party = self._parties.get(owner.party)
        if party is None:
            _forget_idle(self._parties)
            party = self._parties[owner.party] = _Party()
        lane = party.lanes.get(owner.device)
        if lane is None:
            _forget_idle(party.lanes)
            lane = party.lanes[owner.device] = _Lane()
        return lane

    def _add(self, job: QueuedJob) -> None:
        party = self._parties[job.owner.party]
        lane = party.lanes[job.owner.device]
        if len(lane.jobs) == 1:  # it was idle: what it did not use meanwhile is not saved up
            lane.used = max(lane.used, party.clock)
            if not party.jobs:
                party.used = max(party.used, self._clock)
        if job.due < math.inf:
            bisect.insort(self._by_due, job, key=_due)
        job.is_waiting = True
        self._length += 1
        party.jobs += 1
        lane.seconds += job.predicted_seconds
        party.seconds += job.predicted_seconds

    def _drop(self, job: QueuedJob) -> None:
        """Accounts for a job that was taken out."""
        party = self._parties[job.owner.party]
        lane = party.lanes[job.owner.device]
        if job.due < math.inf:
            self._by_due.remove(job)
        job.is_waiting = False
        self._length -= 1
        party.jobs -= 1
        lane.seconds = lane.seconds - job.predicted_seconds if lane.jobs else 0.0
        if lane.jobs:
            party.seconds -= job.predicted_seconds
            return
        party.seconds = sum(each.seconds for each in party.lanes.values())


_Any = TypeVar("_Any", _Party, _Lane)


def _by_use(shares: list[_Any]) -> list[_Any]:
    """The one that was given least first."""
    if len(shares) > 1:
        shares.sort(key=lambda share: share.used)
    return shares


def _due(job: QueuedJob) -> float:
    return job.due


def _forget_idle(shares: dict[str, _Any]) -> None:
    """Forgets who has no jobs, when there are too many to be remembered."""
    if len(shares) >= _MOST_KEPT:
        for name in [name for name, share in shares.items() if not share.jobs]:
            del shares[name]
