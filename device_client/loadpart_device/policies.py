"""Policies: which plan to run, given the plans and what is known of the world."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

from loadpart_common.cost import Weights
from loadpart_common.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.cost import Plans
    from loadpart_common.graph import Graph
    from loadpart_device.link import LinkReading

SWITCH_THRESHOLD = 0.05
"""Least predicted gain that is worth another plan than the last; noise moves predictions by a few per cent."""


class ServerLoad(NamedTuple):
    """What the server last said of itself.

    Attributes:
        slow_down: Measured over predicted seconds of tails.
        backlog_seconds: Seconds until a job that comes now is started.
        draining: It takes no more.
    """

    slow_down: float
    backlog_seconds: float
    draining: bool = False


class World(NamedTuple):
    """What is known when a plan is chosen.

    Attributes:
        link: State of the link; None when unknown.
        load: State of the server; None when unknown.
        device_slow_down: Measured over predicted seconds of heads on this device.
        unavailable: Why the server should not be asked; None when it may be.
    """

    link: LinkReading | None
    load: ServerLoad | None
    device_slow_down: float
    unavailable: str | None


class Choice(NamedTuple):
    """A cut, the latency that is expected of it (None when unknown), and why."""

    cut: int
    predicted_seconds: float | None
    explain: Callable[[], str]


class Policy(ABC):
    """Chooses a cut before each inference; remembers the last one."""

    def __init__(self, graph: Graph) -> None:
        self._whole = graph.whole

    @abstractmethod
    def choose(self, plans: Plans, world: World, batch: int) -> Choice:
        """The cut to run next.

        Args:
            plans: The plans that are built, the local one among them.
            world: What is known.
            batch: Items of the batch.
        """

    def _local(self, why: str) -> Choice:
        return Choice(self._whole, None, lambda: f"local: {why}")


class LoadAware(Policy):
    """The plan with the least predicted latency, from the link and the server's load."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self._last: int | None = None

    def choose(self, plans: Plans, world: World, batch: int) -> Choice:
        """See `Policy.choose`."""
        if world.unavailable is not None:
            return self._local(world.unavailable)
        if world.link is None:
            return self._local("the link has not been measured yet")
        if world.load is None:
            return self._local("the server's load is not known yet")
        weights = self._weights(world, world.link, world.load)
        point, seconds = plans.choose(weights, batch, current=self._last, threshold=SWITCH_THRESHOLD)
        self._last = point.cut
        return Choice(point.cut, seconds, lambda: _explain(plans, weights, batch, point.cut, seconds, world.link))

    def _weights(self, world: World, link: LinkReading, load: ServerLoad) -> Weights:
        return Weights(
            device_slow_down=world.device_slow_down,
            seconds_per_byte=link.seconds_per_byte,
            server_slow_down=load.slow_down,
            fixed_seconds=link.round_trip_seconds + load.backlog_seconds,
        )


class BandwidthOnly(LoadAware):
    """Neurosurgeon's rule (Kang et al., ASPLOS 2017): the link counts, the server is taken to be idle."""

    def _weights(self, world: World, link: LinkReading, load: ServerLoad) -> Weights:  # noqa: ARG002  # that is the rule
        return Weights(
            device_slow_down=world.device_slow_down,
            seconds_per_byte=link.seconds_per_byte,
            server_slow_down=1.0,
            fixed_seconds=link.round_trip_seconds,
        )


class FixedCut(Policy):
    """Always the same cut, unless the server cannot be asked."""

    def __init__(self, graph: Graph, cut: int, name: str) -> None:
        super().__init__(graph)
        self._cut = graph.cut(cut).index
        self._name = name

    def choose(self, plans: Plans, world: World, batch: int) -> Choice:  # noqa: ARG002  # nothing to weigh
        """See `Policy.choose`."""
        if self._cut < self._whole and world.unavailable is not None:
            return self._local(world.unavailable)
        return Choice(self._cut, None, lambda: f"policy {self._name}")


_ADAPTIVE = {"load-aware": LoadAware, "bandwidth-only": BandwidthOnly}
_FIXED = ("local", "offload")
POLICIES = (*_ADAPTIVE, *_FIXED)
"""Names of the policies; a number is a policy too: that cut."""


def make_policy(policy: str | int, graph: Graph) -> Policy:
    """A policy by its name, or by the cut that it always takes.

    Raises:
        SettingsError: There is none of that name.
        CutError: The network cannot be cut there.
    """
    if isinstance(policy, int):
        return FixedCut(graph, policy, f"cut {policy}")
    if policy in _ADAPTIVE:
        return _ADAPTIVE[policy](graph)
    if policy in _FIXED:
        return FixedCut(graph, graph.whole if policy == "local" else 0, policy)
    raise SettingsError(f"policy: expected one of {', '.join(POLICIES)} or the number of a cut, got {policy!r}")


def _explain(plans: Plans, weights: Weights, batch: int, cut: int, seconds: float, link: LinkReading | None) -> str:
    local = plans.seconds(weights, batch)[-1]
    return (
        f"cut {cut}: least of {len(plans.points)} plans, {seconds * 1e3:.1f} ms predicted "
        f"(local {local * 1e3:.1f} ms); link {link}, server slow-down {weights.server_slow_down:.2f}, "
        f"round trip and backlog {weights.fixed_seconds * 1e3:.1f} ms"
    )
