"""Why this plan: every plan of a network with what it would cost, for a link and a load."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from loadpart_common.codecs.registry import CODECS
from loadpart_common.planning.plan import reply_bytes
from loadpart_common.planning.plans import Plans
from loadpart_common.planning.winners import winning_plans
from loadpart_device.deciding.policies import LoadAware
from loadpart_device.deciding.state import EdgeState, World
from loadpart_device.deciding.weighing import counted_externality_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from loadpart_common.graph import Graph
    from loadpart_common.planning.plan import PlanKey, Point
    from loadpart_device.deciding.policies import Weighed
    from loadpart_device.edges.link import LinkReading
    from loadpart_device.edges.load import ServerLoad


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What a plan costs, in seconds.

    Attributes:
        server: The server; empty when none takes part.
        plan: The plan.
        layer: Name of the last layer on the device.
        nbytes: Bytes that cross.
        device_seconds: The head.
        network_seconds: The link: round trip, and the bytes both ways beyond those that go at once.
        queue_seconds: Waiting for a worker.
        server_seconds: The tail.
        total_seconds: All of it.
        externality_seconds: Waiting that it causes to others, as far as the decision counts it.
        error: What its codec does to an output, as a share of the largest output: the worst that was measured of the
            model, or else what the codec is known for.
        is_error_measured: Whether it was measured.
        can_win: Whether it is the best one for some link and load.
        chosen: Whether it is the best one for this link and load.
    """

    server: str
    plan: PlanKey
    layer: str
    nbytes: int
    device_seconds: float
    network_seconds: float
    queue_seconds: float
    server_seconds: float
    total_seconds: float
    externality_seconds: float
    error: float
    is_error_measured: bool
    can_win: bool
    chosen: bool


class State(NamedTuple):
    """A link, a load, and how slow the device is.

    Attributes:
        link: The link.
        load: The server's load.
        device_slow_down: Measured over idle seconds of heads.
    """

    link: LinkReading
    load: ServerLoad
    device_slow_down: float = 1.0

    def __str__(self) -> str:
        return (
            f"{self.link.megabits:.3g} Mbit/s, round trip {self.link.round_trip_seconds * 1e3:.3g} ms, "
            f"server slow-down {self.load.slow_down:.3g}, backlog {self.load.backlog_seconds * 1e3:.3g} ms"
        )


@dataclass(frozen=True)
class Network:
    """A network, and what its heads cost here and its tails on a server when both are idle.

    Attributes:
        name: Its name.
        server: The server; empty when none is there.
        graph: Its layers.
        points: The point of every plan.
        source: Where the figures come from, in words.
        errors: What codecs were measured to do to an output at worst, by plan.
        link: The link as it was measured; None when it was not.
        load: The server's load; None when it was not asked for.
    """

    name: str
    server: str
    graph: Graph
    points: tuple[Point, ...]
    source: str
    errors: Mapping[PlanKey, float]
    link: LinkReading | None
    load: ServerLoad | None

    @cached_property
    def winners(self) -> tuple[Point, ...]:
        """The plans that can win."""
        return winning_plans(self.points)

    @cached_property
    def reply_bytes(self) -> int:
        """Bytes of an answer, one item."""
        return reply_bytes(self.graph)

    def edge(self, state: State, plans: Plans) -> EdgeState:
        """What a client would know of the server in a state."""
        return EdgeState(self.server, plans, state.link, state.load, None)


class View(NamedTuple):
    """A network with one server, and the state that it is looked at in."""

    network: Network
    state: State


def weigh_views(views: Sequence[View], plans: Sequence[Plans]) -> Weighed:
    """What the policy `load-aware` takes of some plans with each server."""
    first = views[0]
    edges = tuple([view.network.edge(view.state, each) for view, each in zip(views, plans, strict=True)])
    world = World(edges, first.state.device_slow_down, first.network.points[-1].key, first.network.reply_bytes)
    best, _ = LoadAware().weigh_all(world, 1, None)
    assert best is not None  # link and load are known
    return best


def plan_costs(views: Sequence[View]) -> list[PlanCost]:
    """What every plan costs with every server, in the order of servers and cuts; the local plan once, at the end.

    Weighed by the policy `load-aware` itself, so that the chosen plan is the one that an inference takes.

    Args:
        views: The same network with each server; at least one.
    """
    best = weigh_views(views, [Plans(view.network.points) for view in views])
    costs = []
    for view in views:
        can_win = {point.key for point in view.network.winners}
        for point in view.network.points:
            if not point.key.is_local or view is views[-1]:
                server = "" if point.key.is_local else view.network.server
                is_chosen = best.chosen == (server, point.key)
                costs.append(_cost(view, point, server, can_win=point.key in can_win, chosen=is_chosen))
    return costs


def _cost(view: View, point: Point, server: str, *, can_win: bool, chosen: bool) -> PlanCost:
    network, (link, load, device_slow_down) = view.network, view.state
    cut = point.key.cut
    remote = 0.0 if point.key.is_local else 1.0
    crossing = max(point.uplink_bytes - link.free_bytes, 0.0) * link.seconds_per_byte
    parts = (
        point.device_seconds * device_slow_down,
        crossing + remote * (link.round_trip_seconds + link.reply_seconds(network.reply_bytes)),
        remote * (load.backlog_seconds + load.dispatch_seconds),
        point.server_seconds * load.slow_down,
    )
    layer = network.graph.layers[cut - 1].name if cut else "(input)"
    measured = network.errors.get(point.key)
    known = 0.0 if point.key.is_local else CODECS[point.key.codec].rates.error
    return PlanCost(
        server,
        point.key,
        layer,
        point.uplink_bytes,
        *parts,
        sum(parts),
        remote * counted_externality_seconds(load),
        known if measured is None else measured,
        measured is not None,
        can_win,
        chosen,
    )
