"""What is known when a plan is chosen, and what was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loadpart_common.planning.plan import PlanKey
    from loadpart_common.planning.plans import Plans, Weights
    from loadpart_device.edges.link import LinkReading
    from loadpart_device.edges.load import ServerLoad


class EdgeState(NamedTuple):
    """A server as it is known at one moment.

    Attributes:
        edge: Its name.
        plans: The plans that may be run with it, the local one among them.
        link: State of the link; None when unknown.
        load: State of the server; None when unknown.
        unavailable: Why it should not be asked; None when it may be.
    """

    edge: str
    plans: Plans
    link: LinkReading | None
    load: ServerLoad | None
    unavailable: str | None


class World(NamedTuple):
    """Everything that a decision depends on.

    Attributes:
        edges: The servers.
        device_slow_down: Measured over predicted seconds of heads on this device.
        local: The plan that leaves everything on the device.
        reply_bytes: Bytes of an answer, one item.
    """

    edges: tuple[EdgeState, ...]
    device_slow_down: float
    local: PlanKey
    reply_bytes: int


class Chosen(NamedTuple):
    """A plan with the server that it is run with.

    Attributes:
        edge: Name of the server; empty when none takes part.
        plan: The plan.
    """

    edge: str
    plan: PlanKey


class Resumed(NamedTuple):
    """What a device has when a server fails in the middle of an inference.

    Attributes:
        cut: The cut whose head it has run.
        head_seconds: What that head takes, and need not take again.
        finish_seconds: What it takes to finish alone.
    """

    cut: int
    head_seconds: float
    finish_seconds: float

    def seconds_left(self, plan: PlanKey, seconds: float) -> float:
        """What a plan takes that would take so many seconds from the beginning."""
        return seconds - self.head_seconds if plan.cut == self.cut else seconds


class Explanation(NamedTuple):
    """Why a plan was chosen, kept as figures and put into words when somebody asks.

    Attributes:
        why: What the plan is among the others, such as `least`.
        plan: The plan.
        edge: The server; empty when there is one only.
        plans: The plans that it was chosen from.
        weights: What they were weighed with.
        link: The link at that moment.
        batch: Items of the batch.
        seconds: Its predicted latency.
    """

    why: str
    plan: PlanKey
    edge: str
    plans: Plans
    weights: Weights
    link: LinkReading
    batch: int
    seconds: float

    def __str__(self) -> str:
        local = self.plans.cost(len(self.plans.points) - 1, self.weights, self.batch)
        there = f" with {self.edge}" if self.edge and not self.plan.is_local else ""
        return (
            f"{self.plan}: {self.why} of {len(self.plans.points)} plans{there}, {self.seconds * 1e3:.1f} ms predicted "
            f"(local {local * 1e3:.1f} ms); link {self.link}, server slow-down {self.weights.server_slow_down:.2f}, "
            f"round trip and backlog {self.weights.fixed_seconds * 1e3:.1f} ms"
        )


class Choice(NamedTuple):
    """What a policy chose.

    Attributes:
        chosen: Server and plan.
        predicted_seconds: Latency that is expected of it; None when unknown.
        reason: Why, as `str` gives it.
        previous: What the policy had chosen before.
        kept_by_chance: Whether that was kept by chance, for the sake of other devices.
    """

    chosen: Chosen
    predicted_seconds: float | None
    reason: str | Explanation
    previous: Chosen | None = None
    kept_by_chance: bool = False
