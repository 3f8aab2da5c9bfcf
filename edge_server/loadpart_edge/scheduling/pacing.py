"""When refused requests are told to come back."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_edge.scheduling.job import Owner

_LEAST_SECONDS, _MOST_SECONDS = 0.05, 10.0
_TIMES_CAPACITY = 1.2
"""How many times as many requests come back as can be served: enough that the queue never empties, few to refuse."""

_RECENT_SECONDS = 5.0
_MOST_OWNERS = 1024


class Pacing:
    """Spreads the requests that come back over time, the same number for every device.

    If all came back when the queue is expected to be shorter, refusing them again would take the time of serving; and a
    device that sends more would find room more often.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._returns_at: OrderedDict[Owner, float] = OrderedDict()  # the device that was refused last is last
        self._refused_at: OrderedDict[Owner, float] = OrderedDict()

    def retry_seconds(self, owner: Owner, least_seconds: float, job_seconds: float) -> float:
        """Seconds after which a request that is refused now is to come back.

        Args:
            owner: Whose it is.
            least_seconds: Before which it would find no room in any case.
            job_seconds: What a job takes of the capacity.
        """
        now = self._clock()
        self._refused_at.pop(owner, None)
        self._refused_at[owner] = now
        while len(self._refused_at) > _MOST_OWNERS or next(iter(self._refused_at.values())) < now - _RECENT_SECONDS:
            forgotten, _ = self._refused_at.popitem(last=False)
            self._returns_at.pop(forgotten, None)
        apart = job_seconds * len(self._refused_at) / _TIMES_CAPACITY
        at = max(now + max(least_seconds, _LEAST_SECONDS), self._returns_at.get(owner, 0.0) + apart)
        at = min(at, now + _MOST_SECONDS)
        self._returns_at[owner] = at
        return at - now
