"""Policies: which plan to run, given the plans and what is known of the world."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from loadpart_common.errors import SettingsError
from loadpart_common.planning.plans import Weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.graph import Graph
    from loadpart_common.planning.plans import Plans
    from loadpart_device.edges.link import LinkReading

SWITCH_THRESHOLD = 0.05
"""Least predicted gain that is worth another plan than the last; noise moves predictions by a few per cent."""

_MANY = 16
"""Devices on one server from which on each counts what its requests cost the others, and changes plans by chance."""


class ServerLoad(NamedTuple):
    """The server's load, as it is expected to be when a request comes.

    Attributes:
        slow_down: Measured over predicted seconds of tails.
        backlog_seconds: Seconds until a job that comes is started.
        draining: It takes no more.
        devices: Devices that sent it a request lately.
        externality_seconds: Waiting that one more job would cause to others.
    """

    slow_down: float
    backlog_seconds: float
    draining: bool = False
    devices: int = 1
    externality_seconds: float = 0.0

    @property
    def others_seconds(self) -> float:
        """As much of `externality_seconds` as this device should count: all of it among many devices.

        If each of many devices counted its own waiting only, they would fill the server until it is no better than
        none (Naor 1969). A few devices are no market: what one of them leaves to the others, nobody takes.
        """
        return self.externality_seconds * max(1 - _MANY / max(self.devices, 1), 0.0)


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
    """A cut, and how it came about.

    Attributes:
        cut: Layers to run on the device.
        predicted_seconds: Latency that is expected of it; None when unknown.
        explain: Puts into words why.
        weights: The weights that it comes from; None when nothing was weighed.
        current: The cut before it.
        waited: Whether the current cut was kept by chance, for the sake of other devices.
    """

    cut: int
    predicted_seconds: float | None
    explain: Callable[[], str]
    weights: Weights | None = None
    current: int | None = None
    waited: bool = False


class Policy(ABC):
    """Chooses a cut before each inference; remembers the last one.

    Attributes:
        name: What it is called.
        regressed: Whether its plans are to be predicted from the costs of operators alone.
    """

    name: str
    regressed: ClassVar[bool] = False

    def __init__(self, whole: int) -> None:
        self._whole = whole

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
    """The plan with the least predicted latency, from the link and the server's load.

    It changes plans only for a gain above `SWITCH_THRESHOLD`, and among many devices by chance: if all went at once to
    a server that has become idle, they would find it overloaded, and leave it at once. So each one changes with the
    probability at which the server could just serve them, if all of them inferred as often as this one does.
    """

    name = "load-aware"
    threshold: ClassVar[float] = SWITCH_THRESHOLD

    def __init__(
        self,
        whole: int,
        reply_bytes: int,
        random_source: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes a policy.

        Args:
            whole: The cut that leaves everything on the device.
            reply_bytes: Bytes of an answer, one item.
            random_source: Where chance comes from.
            clock: Tells how often it decides.
        """
        super().__init__(whole)
        self._reply_bytes = reply_bytes
        self._last: int | None = None
        self._random = random_source or random.Random()
        self._clock = clock
        self._decided_at = float("-inf")

    def choose(self, plans: Plans, world: World, batch: int) -> Choice:
        """See `Policy.choose`."""
        if world.unavailable is not None:
            return self._local(world.unavailable)
        if world.link is None:
            return self._local("the link has not been measured yet")
        if world.load is None:
            return self._local("the server's load is not known yet")
        weights = self.weights(world, world.link, world.load, batch)
        point, seconds = plans.choose(weights, batch, current=self._last, threshold=self.threshold)
        current, waited = self._last, False
        now = self._clock()
        since, self._decided_at = now - self._decided_at, now
        kept = plans.seconds_of(current, weights, batch) if current not in (None, point.cut) else None
        if kept is not None and self._waits(
            world.load, max(point.server_seconds, kept[0].server_seconds) * batch, since
        ):
            (point, seconds), waited = kept, True
        self._last = point.cut
        why = "kept for now, since other devices may change plans too; not the least" if waited else "least"
        return Choice(
            point.cut,
            seconds,
            lambda: _explain(plans, weights, batch, point.cut, seconds, world.link, why),
            weights,
            current,
            waited,
        )

    def weights(self, world: World, link: LinkReading, load: ServerLoad, batch: int) -> Weights:
        """The weights that this policy gives what is known."""
        return Weights(
            device_slow_down=world.device_slow_down,
            seconds_per_byte=link.seconds_per_byte,
            server_slow_down=load.slow_down,
            fixed_seconds=link.round_trip_seconds
            + load.backlog_seconds
            + link.reply_seconds(self._reply_bytes * batch),
            free_bytes=link.free_bytes,
            others_seconds=load.others_seconds,
        )

    def _waits(self, load: ServerLoad, server_seconds: float, since_seconds: float) -> bool:
        """Whether to keep a plan by chance.

        Args:
            load: State of the server.
            server_seconds: What the better plan, or the one in use, takes there.
            since_seconds: Since the last decision.
        """
        if load.devices < _MANY:
            return False
        return self._random.random() * load.devices * server_seconds * load.slow_down > since_seconds


class BandwidthOnly(LoadAware):
    """Neurosurgeon's rule (Kang et al., ASPLOS 2017): the link counts, the server is taken to be idle."""

    name = "bandwidth-only"

    def weights(self, world: World, link: LinkReading, load: ServerLoad, batch: int) -> Weights:
        """See `LoadAware.weights`."""
        return super().weights(world, link, ServerLoad(1.0, 0.0, load.draining, load.devices), batch)


class Paper(LoadAware):
    """LoADPart as published (Liu et al., ICDCS 2022), as far as that is known: a baseline to measure against.

    Heads and tails are predicted from regressions over operators, the server's slow-down multiplies the tail, and the
    bandwidth is the mean of recent measurements, round trips and all. It has no queue, no hysteresis, no chance.
    """

    name = "paper"
    regressed = True
    threshold = 0.0

    def weights(self, world: World, link: LinkReading, load: ServerLoad, batch: int) -> Weights:  # noqa: ARG002
        """See `LoadAware.weights`."""
        return Weights(1.0, 1 / max(link.naive_bytes_per_second, 1e-9), load.slow_down, 0.0)

    def _waits(self, load: ServerLoad, server_seconds: float, since_seconds: float) -> bool:  # noqa: ARG002
        return False


class FixedCut(Policy):
    """Always the same cut, unless the server cannot be asked."""

    def __init__(self, graph: Graph, cut: int, name: str) -> None:
        super().__init__(graph.whole)
        self._cut = graph.cut(cut).index
        self.name = name

    def choose(self, plans: Plans, world: World, batch: int) -> Choice:  # noqa: ARG002  # nothing to weigh
        """See `Policy.choose`."""
        if self._cut < self._whole and world.unavailable is not None:
            return self._local(world.unavailable)
        return Choice(self._cut, None, lambda: f"policy {self.name}")


ADAPTIVE: dict[str, type[LoadAware]] = {kind.name: kind for kind in (LoadAware, BandwidthOnly, Paper)}
"""Policies that weigh plans."""

_FIXED = ("local", "offload")
POLICIES = (*ADAPTIVE, *_FIXED)
"""Names of the policies; a number is a policy too: that cut."""


def make_policy(policy: str | int, graph: Graph) -> Policy:
    """A policy by its name, or by the cut that it always takes.

    Raises:
        SettingsError: There is none of that name.
        CutError: The network cannot be cut there.
    """
    if isinstance(policy, int):
        return FixedCut(graph, policy, f"cut {policy}")
    if policy in ADAPTIVE:
        return ADAPTIVE[policy](graph.whole, reply_bytes(graph))
    if policy in _FIXED:
        return FixedCut(graph, graph.whole if policy == "local" else 0, policy)
    raise SettingsError(f"policy: expected one of {', '.join(POLICIES)} or the number of a cut, got {policy!r}")


def reply_bytes(graph: Graph) -> int:
    """Bytes of an answer, one item."""
    return sum(spec.nbytes(1) for spec in graph.output_specs)


def _explain(
    plans: Plans, weights: Weights, batch: int, cut: int, seconds: float, link: LinkReading | None, why: str
) -> str:
    local = plans.seconds(weights, batch)[-1]
    return (
        f"cut {cut}: {why} of {len(plans.points)} plans, {seconds * 1e3:.1f} ms predicted "
        f"(local {local * 1e3:.1f} ms); link {link}, server slow-down {weights.server_slow_down:.2f}, "
        f"round trip and backlog {weights.fixed_seconds * 1e3:.1f} ms"
    )
