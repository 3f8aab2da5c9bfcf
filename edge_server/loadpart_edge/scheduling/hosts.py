"""What is known of the machines that workers run on, kept by host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.latency.slow_down import RecentMedian, SlowDown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MOST_KEPT = 64
"""Machines that are remembered, those without workers among them."""

_DISPATCH_MEMORY_SECONDS = 30.0
"""For which what dispatching took counts where no job is dispatched."""


class Host:
    """A machine with workers.

    Attributes:
        name: Its name.
        workers: Those that are there now.
        slow_down: Measured over predicted time of the latest tails on it, or of its canary when there are none.
        dispatch: Seconds that jobs lately took to a worker on it and back, beyond decoding and running.
        canary_seconds: What the canary took when its tail was built there; 0 before.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.workers = 0
        self.slow_down = SlowDown()
        self.dispatch = RecentMedian(0.0, stale_seconds=_DISPATCH_MEMORY_SECONDS)
        self.canary_seconds = 0.0


class Hosts:
    """The machines, each known from its first worker on, and their means as a job meets them.

    Attributes:
        shares: Of the jobs that each machine with workers gets while all are busy, by name: as its workers and their
            speeds by the canary. The last ones that were there while there are none.
        on_shares: Called with the shares when they have changed.
        on_forgotten: Called with the name of a machine of which nothing is known any more.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, Host] = {}
        self.shares: dict[str, float] = {}
        self.on_shares: Callable[[Mapping[str, float]], None] = lambda _: None
        self.on_forgotten: Callable[[str], None] = lambda _: None

    def joined(self, name: str) -> None:
        """Notes that a machine has one more worker."""
        self[name].workers += 1
        self._weigh()

    def left(self, name: str) -> None:
        """Notes that a machine has one worker less."""
        self[name].workers -= 1
        if len(self._by_name) > MOST_KEPT:
            for gone in [host.name for host in self._by_name.values() if not host.workers]:
                del self._by_name[gone]
                self.on_forgotten(gone)
        self._weigh()

    def measured(self, name: str, canary_seconds: float) -> None:
        """Notes what the canary takes on a machine that has nothing else to do."""
        self[name].canary_seconds = canary_seconds
        self._weigh()

    def __getitem__(self, name: str) -> Host:
        host = self._by_name.get(name)
        if host is None:
            host = self._by_name[name] = Host(name)
        return host

    @property
    def live(self) -> list[Host]:
        """The machines that have workers now."""
        return [host for host in list(self._by_name.values()) if host.workers]  # also on a thread that reads metrics

    @property
    def slow_down(self) -> float:
        """Mean slow-down of the machines; 1 without any."""
        return sum(share * self[name].slow_down.value for name, share in self.shares.items()) or 1.0

    @property
    def dispatch_seconds(self) -> float:
        """Mean seconds of dispatching to the machines; 0 without any."""
        return sum(share * self[name].dispatch.value for name, share in self.shares.items())

    def _weigh(self) -> None:
        live = self.live
        if not live:
            return
        are_measured = all(host.canary_seconds for host in live)
        speeds = {host.name: host.workers / (host.canary_seconds if are_measured else 1.0) for host in live}
        self.shares = {name: speed / sum(speeds.values()) for name, speed in speeds.items()}
        self.on_shares(self.shares)
