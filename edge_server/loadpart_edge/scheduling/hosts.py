"""What is known of the machines that workers run on, kept by host."""

from __future__ import annotations

from loadpart_common.latency.slow_down import RecentMedian, SlowDown

_DISPATCH_MEMORY_SECONDS = 30.0
"""For which what dispatching took counts where no job is dispatched."""


class Host:
    """A machine with workers.

    Attributes:
        name: Its name.
        slow_down: Measured over predicted time of the latest tails on it, or of its canary when there are none.
        dispatch: Seconds that jobs lately took to a worker on it and back, beyond decoding and running.
        canary_seconds: What the canary took when its tail was built there; 0 before.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.slow_down = SlowDown()
        self.dispatch = RecentMedian(0.0, stale_seconds=_DISPATCH_MEMORY_SECONDS)
        self.canary_seconds = 0.0


class Hosts:
    """The machines, each known from its first worker on."""

    def __init__(self) -> None:
        self._by_name: dict[str, Host] = {}

    def add(self, name: str) -> Host:
        """The machine of a name, which is known from now on."""
        return self._by_name.setdefault(name, Host(name))

    def __getitem__(self, name: str) -> Host:
        return self._by_name.get(name) or self.add(name)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the machines, the one known longest first."""
        return tuple(self._by_name)

    @property
    def first(self) -> str:
        """Name of the machine known longest; empty before the first worker."""
        return next(iter(self._by_name), "")

    @property
    def slow_down(self) -> float:
        """Mean slow-down of the machines; 1 without any."""
        values = [host.slow_down.value for host in self._by_name.values()]
        return sum(values) / len(values) if values else 1.0

    @property
    def dispatch_seconds(self) -> float:
        """Mean seconds of dispatching to the machines; 0 without any."""
        values = [host.dispatch.value for host in self._by_name.values()]
        return sum(values) / len(values) if values else 0.0
