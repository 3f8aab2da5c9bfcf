"""What the server's load will be when a request comes, from what it said some time ago."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from loadpart_common.wire.framing import BACKLOG_WINDOW_SECONDS
from loadpart_device.deciding.policies import ServerLoad

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart.v1 import offload_pb2

_FORGET_SECONDS = 0.05
"""In which a backlog that was seen says less and less, and the mean one says more: about the length of a job."""

_WINDOW = BACKLOG_WINDOW_SECONDS


class LoadFollower:
    """Follows the status of a server.

    A backlog above its mean is worked off, one second a second, until it is back there: further jobs keep it at about
    that. One below its mean goes up to it, as a process does that forgets exponentially where it was. The device's own
    jobs are part of the mean and are taken out of it: they never wait for themselves.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._heard: tuple[ServerLoad, float, float] | None = None  # with the mean backlog without own jobs, and when
        self._own = 0.0  # seconds of backlog that the device's own jobs are of the mean
        self._own_at = 0.0

    @property
    def draining(self) -> bool:
        """Whether the server said that it takes no more."""
        return self._heard is not None and self._heard[0].draining

    def served(self, queue_seconds: float, tail_seconds: float) -> None:
        """Takes in what a job of this device's was: while it waited, and then less and less, it was backlog.

        What it does to the load shows once the status that came with the answer is heard.
        """
        now = self._clock()
        self._own *= math.exp((self._own_at - now) / _WINDOW)
        # Its share of a mean with exponential weights: all of the tail while it waited, and what was left while it ran.
        left, ran = math.exp(-tail_seconds / _WINDOW), tail_seconds / _WINDOW
        self._own += tail_seconds * left * (1 - math.exp(-queue_seconds / _WINDOW)) + _WINDOW * (1 - left * (1 + ran))
        self._own_at = now

    def heard(self, status: offload_pb2.ServerStatus) -> None:
        """Takes in a status."""
        now = self._clock()
        own = self._own * math.exp((self._own_at - now) / _WINDOW)
        load = ServerLoad(
            status.slow_down,
            status.backlog_seconds,
            status.draining,
            status.active_devices,
            status.externality_seconds,
        )
        self._heard = load, max(status.mean_backlog_seconds - own, 0.0), now

    def now(self) -> ServerLoad | None:
        """The load that is expected now; None when nothing was heard."""
        if self._heard is None:
            return None
        heard, mean, heard_at = self._heard
        seen, passed = heard.backlog_seconds, self._clock() - heard_at
        if seen < mean:
            backlog = mean - (mean - seen) * math.exp(-passed / _FORGET_SECONDS)
        else:
            backlog = max(seen - passed, mean)
        if backlog == seen:
            return heard
        return ServerLoad(heard.slow_down, backlog, heard.draining, heard.devices, heard.externality_seconds)
