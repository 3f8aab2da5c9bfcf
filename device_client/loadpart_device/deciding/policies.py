"""Policies: which plan to run, and with which server, given what is known."""

from __future__ import annotations

import math
import random
import re
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from loadpart_common.codecs.registry import CODECS
from loadpart_common.errors import SettingsError
from loadpart_common.planning.plan import local_plan, plan_at
from loadpart_common.planning.plans import Weights
from loadpart_device.deciding.state import Choice, Chosen, Explanation, Resumed
from loadpart_device.deciding.weighing import MANY_DEVICES, weigh

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from loadpart_common.graph import Graph
    from loadpart_common.planning.plan import PlanKey
    from loadpart_device.deciding.state import EdgeState, World
    from loadpart_device.edges.link import LinkReading
    from loadpart_device.edges.load import ServerLoad

SWITCH_THRESHOLD = 0.05
"""Least predicted gain that is worth another plan than the last; noise moves predictions by a few per cent."""


class Weighed(NamedTuple):
    """A plan of a server with its cost.

    Attributes:
        state: The server.
        load: Its load.
        weights: What its plans were weighed with.
        position: The plan's among those of the server.
        cost: Of the plan, in seconds.
    """

    state: EdgeState
    load: ServerLoad
    weights: Weights
    position: int
    cost: float

    @property
    def seconds(self) -> float:
        """Predicted latency of the plan in seconds."""
        return self.state.plans.latency(self.position, self.cost, self.weights)

    @property
    def chosen(self) -> Chosen:
        """Server and plan."""
        plan = self.state.plans.points[self.position].key
        return Chosen("" if plan.is_local else self.state.edge, plan)

    @property
    def server_seconds(self) -> float:
        """Idle seconds of the plan's tail, one item."""
        return self.state.plans.points[self.position].server_seconds


class Policy(ABC):
    """Chooses server and plan before each inference; remembers the last choice.

    Attributes:
        name: What it is called.
        uses_latency_model_only: Whether its plans are to be predicted from the latency model alone, as if no segment
            had been measured.
    """

    name: str
    uses_latency_model_only: ClassVar[bool] = False

    @abstractmethod
    def choose(self, world: World, batch: int) -> Choice:
        """Server and plan to run next.

        Args:
            world: What is known.
            batch: Items of the batch.
        """

    @abstractmethod
    def choose_again(self, world: World, batch: int, resumed: Resumed, failed: Container[str]) -> Choice | None:
        """What to do after a server has failed.

        Args:
            world: What is known now.
            batch: Items of the batch.
            resumed: What the device has, and what it takes to finish alone.
            failed: Names of the servers that have failed.

        Returns:
            Another server with the plan to run there; None when the device is to finish alone.
        """

    @property
    @abstractmethod
    def needs_server(self) -> bool:
        """Whether it ever chooses a plan that a server takes part in."""

    @property
    def wanted(self) -> PlanKey | None:
        """The plan with a server that the application wants, whatever is known; None where the policy weighs plans."""
        return None


class LoadAware(Policy):
    """The least predicted latency, from the links and the servers' loads.

    It changes plans only for a gain above `SWITCH_THRESHOLD`, and among many devices by chance: if all went at once to
    a server that has become idle, they would find it overloaded, and leave it at once. So each one changes with the
    probability at which the server could just serve them, if all of them inferred as often as this one does.

    Attributes:
        threshold: Least gain, as a share, that is worth another plan.
        weights: The weights that this policy gives to what is known of one server; takes what `weigh` takes.
    """

    name = "load-aware"
    threshold: ClassVar[float] = SWITCH_THRESHOLD
    needs_server = True
    weights = staticmethod(weigh)

    def __init__(self, random_source: random.Random | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Makes a policy.

        Args:
            random_source: Where chance comes from.
            clock: Tells how often it decides, in seconds.
        """
        self._last: Chosen | None = None
        self._random = random_source or random.Random()
        self._clock = clock
        self._decided_at = float("-inf")

    def choose(self, world: World, batch: int) -> Choice:
        """See `Policy.choose`."""
        best, kept = self.weigh_all(world, batch, self._last)
        if best is None:
            return Choice(Chosen("", world.local), None, f"local: {_why_local(world)}")
        previous, by_chance, why = self._last, False, "least"
        now = self._clock()
        since, self._decided_at = now - self._decided_at, now
        if kept is not None and kept is not best:
            if not self._is_worth_changing(kept, best):
                best = kept
            elif self._keeps_by_chance(world, best, kept, batch, since):
                best, by_chance = kept, True
                why = "kept for now, since other devices may change plans too; not the least"
        self._last = chosen = best.chosen
        link, seconds = best.state.link, best.seconds
        assert link is not None  # or it would not have been weighed
        edge = best.state.edge if len(world.edges) > 1 else ""
        reason = Explanation(why, chosen.plan, edge, best.state.plans, best.weights, link, batch, seconds)
        return Choice(chosen, seconds, reason, previous, by_chance)

    def weigh_all(self, world: World, batch: int, previous: Chosen | None) -> tuple[Weighed | None, Weighed | None]:
        """The best plan of all servers, and the previous one if it may still be run; both are None without a server."""
        best: Weighed | None = None
        kept: Weighed | None = None
        least = math.inf
        _, device_slow_down, _, reply_bytes = world
        for state, link, load in _usable(world):
            weights = self.weights(link, load, device_slow_down, reply_bytes, batch)
            cost, position = state.plans.least(weights, batch)
            if best is None or cost < least:
                least, best = cost, Weighed(state, load, weights, position, cost)
            if kept is None and previous is not None and (not previous.edge or previous.edge == state.edge):
                before = state.plans.position(previous.plan)
                if before is not None:
                    same = best.state is state and before == best.position
                    cost = state.plans.cost(before, weights, batch)
                    kept = best if same else Weighed(state, load, weights, before, cost)
        return best, kept

    def choose_again(self, world: World, batch: int, resumed: Resumed, failed: Container[str]) -> Choice | None:
        """See `Policy.choose_again`: the least predicted time until the answer, the device's own included."""
        least, choice = resumed.finish_seconds, None
        for state, link, load in _usable(world):
            if state.edge in failed:
                continue
            weights = self.weights(link, load, world.device_slow_down, world.reply_bytes, batch)
            for position, cost in enumerate(state.plans.costs(weights, batch)):
                plan = state.plans.points[position].key
                seconds = resumed.seconds_left(plan, state.plans.latency(position, cost, weights))
                if not plan.is_local and seconds < least:
                    least, choice = seconds, Choice(Chosen(state.edge, plan), seconds, f"{plan}")
        return choice

    def again(self, world: World, batch: int, previous: Chosen | None) -> Chosen:
        """What this policy chooses after a previous choice, chance left out; changes nothing."""
        best, kept = self.weigh_all(world, batch, previous)
        if best is None:
            return Chosen("", world.local)
        return (best if kept is None or self._is_worth_changing(kept, best) else kept).chosen

    def _is_worth_changing(self, kept: Weighed, best: Weighed) -> bool:
        """Whether the best plan gains enough over the one in use."""
        return best.cost <= kept.cost * (1 - self.threshold)

    def _keeps_by_chance(self, world: World, best: Weighed, kept: Weighed, batch: int, since_seconds: float) -> bool:
        """Whether to keep a plan by chance, so that not all devices change at once.

        Any device may have the same thought, whichever server it is at. A server that is left matters as much as one
        that is joined: where all leave at once, all come back at once.

        Args:
            world: What is known.
            best: The better plan.
            kept: The one in use.
            batch: Items of the batch.
            since_seconds: Since the last decision.
        """
        devices = sum([load.devices for _, _, load in _usable(world)])
        if devices < MANY_DEVICES:
            return False
        busy = max(one.server_seconds * batch * one.load.slow_down for one in (best, kept))
        return self._random.random() * devices * busy > since_seconds


class BandwidthOnly(LoadAware):
    """Neurosurgeon's rule (Kang et al., ASPLOS 2017): the link counts, the server is taken to be idle."""

    name = "bandwidth-only"

    @staticmethod
    def weights(
        link: LinkReading, load: ServerLoad, device_slow_down: float, reply_bytes: int, batch: int = 1
    ) -> Weights:
        """See `weigh`."""
        idle = load._replace(slow_down=1.0, backlog_seconds=0.0, externality_seconds=0.0, dispatch_seconds=0.0)
        return weigh(link, idle, device_slow_down, reply_bytes, batch)


class Paper(LoadAware):
    """LoADPart as published (Liu et al., ICDCS 2022), as far as that is known: a baseline to measure against.

    Heads and tails are predicted from regressions over operators, the server's slow-down multiplies the tail, and the
    bandwidth is the mean of recent measurements, round trips and all. It has no queue, no hysteresis, no chance.
    """

    name = "paper"
    uses_latency_model_only = True
    threshold = 0.0

    @staticmethod
    def weights(
        link: LinkReading,
        load: ServerLoad,
        device_slow_down: float,  # noqa: ARG004
        reply_bytes: int,  # noqa: ARG004
        batch: int = 1,  # noqa: ARG004
    ) -> Weights:
        """See `weigh`."""
        return Weights(1.0, 1 / max(link.naive_bytes_per_second, 1e-9), load.slow_down, 0.0)

    def _keeps_by_chance(self, *_: object) -> bool:
        return False


class FixedPlan(Policy):
    """Always the same plan, with the server that may be asked and is predicted to answer first.

    Attributes:
        plan: The plan.
    """

    def __init__(self, plan: PlanKey, name: str) -> None:
        self.plan = plan
        self.name = name

    @property
    def needs_server(self) -> bool:
        """See `Policy.needs_server`."""
        return not self.plan.is_local

    @property
    def wanted(self) -> PlanKey | None:
        """See `Policy.wanted`."""
        return None if self.plan.is_local else self.plan

    def choose(self, world: World, batch: int) -> Choice:
        """See `Policy.choose`."""
        if self.plan.is_local:
            return Choice(Chosen("", self.plan), None, f"policy {self.name}")
        chosen = self._first(world, batch, ())
        if chosen is None:
            return Choice(Chosen("", world.local), None, f"local: {_why_local(world)}")
        return Choice(Chosen(chosen[0], self.plan), chosen[1], f"policy {self.name}")

    def choose_again(self, world: World, batch: int, resumed: Resumed, failed: Container[str]) -> Choice | None:
        """See `Policy.choose_again`: the same plan with another server, unless the device is known to finish first."""
        chosen = self._first(world, batch, failed)
        if chosen is None:
            return None
        edge, seconds = chosen
        if seconds is not None:
            seconds = resumed.seconds_left(self.plan, seconds)
            if seconds >= resumed.finish_seconds:
                return None
        return Choice(Chosen(edge, self.plan), seconds, f"policy {self.name}")

    def _first(self, world: World, batch: int, failed: Container[str]) -> tuple[str, float | None] | None:
        """The server that is predicted to answer first; one of which too little is known counts after all others."""
        there = [state for state in world.edges if state.unavailable is None and state.edge not in failed]
        seconds = [(state.edge, self._seconds(state, world, batch)) for state in there]
        return min(seconds, key=lambda each: math.inf if each[1] is None else each[1], default=None)

    def _seconds(self, state: EdgeState, world: World, batch: int) -> float | None:
        """Predicted latency of the plan; None when link, load, or the plan's own times are not known."""
        position = state.plans.position(self.plan)
        if position is None or state.link is None or state.load is None:
            return None
        weights = weigh(state.link, state.load, world.device_slow_down, world.reply_bytes, batch)
        return state.plans.latency(position, state.plans.cost(position, weights, batch), weights)


ADAPTIVE: dict[str, type[LoadAware]] = {kind.name: kind for kind in (LoadAware, BandwidthOnly, Paper)}
"""Policies that weigh plans."""

_FIXED = ("local", "offload")
_CUT_AND_CODEC = re.compile(r"(?P<cut>[0-9]+):(?P<codec>[^:]+)")
POLICIES = (*ADAPTIVE, *_FIXED)
"""Names of the policies; a number is a policy too: that cut; and CUT:CODEC is one, such as `0:webp-lossless`."""


def make_policy(policy: str | int, graph: Graph) -> Policy:
    """A policy by its name, or by the cut that it always takes, raw or with a codec.

    Raises:
        SettingsError: There is none of that name, or no such codec.
        CutError: The network cannot be cut there.
    """
    if isinstance(policy, int) and not isinstance(policy, bool):
        return FixedPlan(plan_at(graph, policy), f"cut {policy}")
    if isinstance(policy, str) and policy in ADAPTIVE:
        return ADAPTIVE[policy]()
    if isinstance(policy, str) and policy in _FIXED:
        return FixedPlan(local_plan(graph) if policy == "local" else plan_at(graph, 0), policy)
    if isinstance(policy, str) and (match := _CUT_AND_CODEC.fullmatch(policy)):
        plan = plan_at(graph, int(match["cut"]), CODECS[match["codec"]].name)
        return FixedPlan(plan, str(plan))
    raise SettingsError(
        f"policy: expected one of {', '.join(POLICIES)}, the number of a cut, or CUT:CODEC, got {policy!r}"
    )


def _usable(world: World) -> list[tuple[EdgeState, LinkReading, ServerLoad]]:
    """The servers that can be weighed, with their links and loads."""
    usable = []
    for state in world.edges:
        _, _, link, load, unavailable = state
        if unavailable is None and link is not None and load is not None:
            usable.append((state, link, load))
    return usable


def _why_local(world: World) -> str:
    """Why no server was weighed."""
    if len(world.edges) == 1:
        return _why_not(world.edges[0])
    return "; ".join(f"{state.edge}: {_why_not(state)}" for state in world.edges) or "there is no server"


def _why_not(state: EdgeState) -> str:
    if state.unavailable is not None:
        return state.unavailable
    return "the link has not been measured yet" if state.link is None else "the server's load is not known yet"
