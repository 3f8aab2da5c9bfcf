"""Why this plan: every plan of a network with what it would cost, for a link and a load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.engines.registry import engine_for
from loadpart_common.errors import SettingsError, UnavailableError
from loadpart_common.latency.curves import Curves
from loadpart_common.latency.measurements import Measurements
from loadpart_common.planning.plan import points, reply_bytes
from loadpart_common.planning.plans import Plans
from loadpart_common.planning.winners import winning_plans
from loadpart_device.deciding.policies import LoadAware
from loadpart_device.deciding.state import EdgeState, World
from loadpart_device.edges.edge import Edge
from loadpart_device.edges.probe_budget import ProbeBudget
from loadpart_device.model_cache import find_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadpart_common.graph import Graph
    from loadpart_common.planning.plan import PlanKey, Point
    from loadpart_device.edges.connection import Connection
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
        link: The link as it was measured; None without a server.
        load: The server's load; None without a server.
    """

    name: str
    graph: Graph
    points: tuple[Point, ...]
    source: str
    link: LinkReading | None
    load: ServerLoad | None

    def winners(self) -> tuple[Point, ...]:
        """The plans that can win."""
        return winning_plans(self.points)

    def world(self, state: State, plans: Plans) -> World:
        """What a client would know in a state."""
        edges = (EdgeState("", plans, state.link, state.load, None),)
        return World(edges, state.device_slow_down, self.points[-1].key, reply_bytes(self.graph))

    def costs(self, state: State) -> list[PlanCost]:
        """What every plan costs for a link and a load, in the order of the cuts.

        Weighed by the policy `load-aware` itself, so that the chosen plan is the one that an inference takes.
        """
        can_win = {point.key for point in self.winners()}
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
            crossing + remote * (link.round_trip_seconds + link.reply_seconds(reply_bytes(self.graph))),
            remote * load.backlog_seconds,
            point.server_seconds * load.slow_down,
        )
        layer = self.graph.layers[cut - 1].name if cut else "(input)"
        return PlanCost(
            point.key, layer, point.uplink_bytes, *parts, sum(parts), remote * externality, can_win, chosen
        )  # fmt: skip


def look_up(
    name: str,
    connection: Connection,
    *,
    cache: Path,
    latency_folder: Path | None,
    threads: int,
    timeout_seconds: float,
    measure: bool,
    on_progress: Callable[[int, int], None],
) -> Network:
    """A network, and what its heads cost on this machine and its tails on a server.

    When the server is not there, the network is the cached one and the tails cost what they would cost here.

    Args:
        name: Name of the model.
        connection: To the server; it is closed.
        cache: Folder of fetched models.
        latency_folder: Folder with what was measured of this machine; the usual one when None.
        threads: Threads of one operator.
        timeout_seconds: How long to wait for the server.
        measure: Whether to measure the link and the load, too; then the server has to be there.
        on_progress: Called with the bytes that have come and those of all, while a model is fetched.

    Raises:
        ModelNotFoundError: The server does not serve it; or it is not there, and the model is not cached.
        SettingsError: Link and load are to be measured, and the server is not there.
        UnavailableError: Measuring them took too long.
    """
    link, load = None, None
    edge = Edge(connection, ProbeBudget())
    try:
        stored, info, why_not = find_model([connection], name, cache, timeout_seconds, on_progress)
        if measure:
            if why_not is not None:
                raise SettingsError(f"bandwidth: expected Mbit/s, since the link cannot be measured: {why_not}")
            link, load = _measure(edge, timeout_seconds)
    finally:
        edge.close()
    graph = stored.manifest.graph
    measurements = Measurements(engine_for(stored.manifest.format), threads, latency_folder)
    curves, profile = Curves(graph, measurements.model()), measurements.profile(stored.manifest.digest)
    heads = curves.head_seconds(profile.heads)
    if info is None:
        source, tails = "heads and tails as on this machine: no server is there", curves.tail_seconds(profile.tails)
    else:
        source, tails = f"heads as on this machine, tails as {edge.name} says", np.array(info.tail_seconds)
    return Network(name, graph, points(graph, heads, tails), source, link, load)


def _measure(edge: Edge, timeout_seconds: float) -> tuple[LinkReading, ServerLoad]:
    edge.start()
    edge.wait_measured(timeout_seconds)
    link, load = edge.link.reading, edge.load
    if link is None or load is None:
        raise UnavailableError(f"no measurement within {timeout_seconds:g} s")
    return link, load
