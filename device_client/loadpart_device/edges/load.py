"""A server's load when a request comes, predicted from the statuses that it sent before."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple

from loadpart_common.wire.limits import BACKLOG_WINDOW_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart.v1 import offload_pb2

_FORGET_SECONDS = 0.05
"""Time constant with which the prediction goes from the backlog in a status to the mean backlog: about one job."""

_WINDOW = BACKLOG_WINDOW_SECONDS


class ServerLoad(NamedTuple):
    """The server's load, as it is expected to be when a request comes.

    Attributes:
        slow_down: Measured over predicted seconds of tails.
        backlog_seconds: Seconds until a job that comes is started.
        draining: It takes no more.
        devices: Devices that sent it a request lately.
        externality_seconds: Waiting that one more job would cause to others.
        dispatch_seconds: What a job takes to a worker and back, beyond decoding and running.
    """

    slow_down: float
    backlog_seconds: float
    draining: bool = False
    devices: int = 1
    externality_seconds: float = 0.0
    dispatch_seconds: float = 0.0


class LoadFollower:
    """Follows the status of a server.

    Between statuses, the device assumes that the backlog drifts to its recent mean. A larger backlog is worked off, one
    second a second, until it is at the mean, where further jobs keep it. A smaller one rises to the mean exponentially.
    The device's own jobs are subtracted from the mean, because they never wait for themselves.

    Attributes:
        has_workers: Whether the server has workers, as it said last; assumed before it has said anything.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._status: tuple[ServerLoad, float, float] | None = None  # with the mean backlog without own jobs, and when
        self.has_workers = True
        self._own = 0.0  # seconds of backlog that the device's own jobs are of the mean
        self._own_at = 0.0

    @property
    def why_not(self) -> str | None:
        """Why the server takes no requests, as it said itself; None when it does."""
        if self._status is not None and self._status[0].draining:
            return "the server is shutting down"
        return None if self.has_workers else "the server has no worker at the moment"

    def forget(self) -> None:
        """Drops the last status, because the server is not there any more."""
        self._status = None
        self.has_workers = False

    def reply_received(self, queue_seconds: float, tail_seconds: float) -> None:
        """Takes in a job of this device's own: how much of the server's mean backlog it was.

        It shows in `now` after the status that came with the reply has been taken in, too.
        """
        now = self._clock()
        self._own *= math.exp((self._own_at - now) / _WINDOW)
        # Its share of a mean with exponential weights: all of the tail while it waited, and what was left while it ran.
        left, ran = math.exp(-tail_seconds / _WINDOW), tail_seconds / _WINDOW
        self._own += tail_seconds * left * (1 - math.exp(-queue_seconds / _WINDOW)) + _WINDOW * (1 - left * (1 + ran))
        self._own_at = now

    def status_received(self, status: offload_pb2.ServerStatus) -> None:
        """Takes in a status."""
        now = self._clock()
        self.has_workers = status.workers > 0
        own = self._own * math.exp((self._own_at - now) / _WINDOW)
        load = ServerLoad(
            status.slow_down,
            status.backlog_seconds,
            status.draining,
            status.active_devices,
            status.externality_seconds,
            status.dispatch_seconds,
        )
        self._status = load, max(status.mean_backlog_seconds - own, 0.0), now

    def now(self) -> ServerLoad | None:
        """The load that is expected now; None before the first status."""
        if self._status is None:
            return None
        last, mean, received_at = self._status
        seen, passed = last.backlog_seconds, self._clock() - received_at
        if seen < mean:
            backlog = mean - (mean - seen) * math.exp(-passed / _FORGET_SECONDS)
        else:
            backlog = max(seen - passed, mean)
        if backlog == seen:
            return last
        return last._replace(backlog_seconds=backlog)
