"""Why this plan: every plan of a network with what it would cost, for a link and a load."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from loadpart_common.codecs.registry import CODECS
from loadpart_common.planning.plan import reply_bytes
from loadpart_common.planning.plans import Plans
from loadpart_common.planning.winners import winning_plans
from loadpart_device.deciding.policies import LoadAware
from loadpart_device.deciding.state import EdgeState, World

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadpart_common.graph import Graph
    from loadpart_common.planning.plan import PlanKey, Point
    from loadpart_device.edges.link import LinkReading
    from loadpart_device.edges.load import ServerLoad


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What a plan costs, in seconds.

    Attributes:
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


@dataclass(frozen=True, slots=True)
class State:
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
    """A network, and what its heads cost here and its tails on the server when both are idle.

    Attributes:
        name: Its name.
        graph: Its layers.
        points: The point of every plan.
        source: Where the figures come from, in words.
        errors: What codecs were measured to do to an output at worst, by plan.
        link: The link as it was measured; None without a server.
        load: The server's load; None without a server.
    """

    name: str
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

    def world(self, state: State, plans: Plans) -> World:
        """What a client would know in a state."""
        edges = (EdgeState("", plans, state.link, state.load, None),)
        return World(edges, state.device_slow_down, self.points[-1].key, self.reply_bytes)

    def costs(self, state: State) -> list[PlanCost]:
        """What every plan costs for a link and a load, in the order of the cuts.

        Weighed by the policy `load-aware` itself, so that the chosen plan is the one that an inference takes.
        """
        can_win = {point.key for point in self.winners}
        best, _ = LoadAware().weigh_all(self.world(state, Plans(self.points)), 1, None)
        assert best is not None  # link and load are known
        chosen = best.chosen.plan
        return [
            self._cost(point, state, best.weights.externality_seconds, point.key in can_win, point.key == chosen)
            for point in self.points
        ]

    def _cost(self, point: Point, state: State, externality: float, can_win: bool, chosen: bool) -> PlanCost:
        link, load, cut = state.link, state.load, point.key.cut
        remote = 0.0 if point.key.is_local else 1.0
        crossing = max(point.uplink_bytes - link.free_bytes, 0.0) * link.seconds_per_byte
        parts = (
            point.device_seconds * state.device_slow_down,
            crossing + remote * (link.round_trip_seconds + link.reply_seconds(self.reply_bytes)),
            remote * (load.backlog_seconds + load.dispatch_seconds),
            point.server_seconds * load.slow_down,
        )
        layer = self.graph.layers[cut - 1].name if cut else "(input)"
        measured = self.errors.get(point.key)
        known = 0.0 if point.key.is_local else CODECS[point.key.codec].rates.error
        return PlanCost(
            point.key,
            layer,
            point.uplink_bytes,
            *parts,
            sum(parts),
            remote * externality,
            known if measured is None else measured,
            measured is not None,
            can_win,
            chosen,
        )
