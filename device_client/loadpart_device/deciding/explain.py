"""Why this cut: every plan of a network with what it would cost, for a link and a load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.errors import SettingsError, UnavailableError
from loadpart_common.latency.model import Curves
from loadpart_common.planning.plans import Plans, Weights, lower_hull, points
from loadpart_common.wire.framing import DEFAULT_MAX_MESSAGE_BYTES
from loadpart_device.edges.connection import Server
from loadpart_device.edges.monitor import Monitor
from loadpart_device.model_cache import find_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadpart_common.graph import Graph
    from loadpart_common.latency.measurements import Measurements
    from loadpart_common.planning.plans import Point
    from loadpart_device.deciding.policies import ServerLoad
    from loadpart_device.edges.link import LinkReading


@dataclass(frozen=True, slots=True)
class PlanCost:
    """What a plan costs, in seconds.

    Attributes:
        cut: Layers on the device.
        layer: Name of the last of them.
        nbytes: Bytes that cross.
        device_seconds: The head.
        network_seconds: The link, round trip and all.
        queue_seconds: Waiting for a worker.
        server_seconds: The tail.
        total_seconds: All of it.
        can_win: Whether it is on the lower hull: the best one for some link and load.
        chosen: Whether it is the best one for this link and load.
    """

    cut: int
    layer: str
    nbytes: int
    device_seconds: float
    network_seconds: float
    queue_seconds: float
    server_seconds: float
    total_seconds: float
    can_win: bool
    chosen: bool


@dataclass(frozen=True, slots=True)
class State:
    """A link and a load.

    Attributes:
        seconds_per_byte: Of the uplink.
        round_trip_seconds: Of a small request.
        server_slow_down: Measured over idle seconds of tails.
        backlog_seconds: Until a job that comes is started.
        device_slow_down: Measured over idle seconds of heads.
    """

    seconds_per_byte: float
    round_trip_seconds: float = 0.0
    server_slow_down: float = 1.0
    backlog_seconds: float = 0.0
    device_slow_down: float = 1.0

    @property
    def weights(self) -> Weights:
        """As weights of the decision."""
        fixed = self.round_trip_seconds + self.backlog_seconds
        return Weights(self.device_slow_down, self.seconds_per_byte, self.server_slow_down, fixed)

    def __str__(self) -> str:
        return (
            f"{8e-6 / self.seconds_per_byte:.3g} Mbit/s, round trip {self.round_trip_seconds * 1e3:.3g} ms, "
            f"server slow-down {self.server_slow_down:.3g}, backlog {self.backlog_seconds * 1e3:.3g} ms"
        )


@dataclass(frozen=True)
class Network:
    """A network, and what its heads cost here and its tails on the server when both are idle.

    Attributes:
        name: Its name.
        graph: Its layers.
        points: The point of every cut.
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

    def hull(self) -> tuple[Point, ...]:
        """The plans that can win."""
        return lower_hull(self.points)

    def costs(self, state: State) -> list[PlanCost]:
        """What every cut costs for a link and a load, in the order of the cuts."""
        hull = {point.cut for point in self.hull()}
        chosen = Plans(self.points).choose(state.weights)[0].cut
        return [self._cost(point, state, point.cut in hull, point.cut == chosen) for point in self.points]

    def _cost(self, point: Point, state: State, can_win: bool, chosen: bool) -> PlanCost:
        parts = (
            point.device_seconds * state.device_slow_down,
            point.uplink_bytes * state.seconds_per_byte + state.round_trip_seconds * point.remote,
            state.backlog_seconds * point.remote,
            point.server_seconds * state.server_slow_down,
        )
        layer = self.graph.layers[point.cut - 1].name if point.cut else "(input)"
        return PlanCost(point.cut, layer, point.uplink_bytes, *parts, sum(parts), can_win, chosen)


def look_up(
    name: str,
    target: str,
    *,
    cache: Path,
    measurements: Measurements,
    timeout_seconds: float,
    measure: bool,
    on_progress: Callable[[int, int], None],
) -> Network:
    """A network, and what its heads cost on this machine and its tails on a server.

    When the server is not there, the network is the cached one and the tails cost what they would cost here.

    Args:
        name: Name of the model.
        target: The server, `HOST:PORT`.
        cache: Folder of fetched models.
        measurements: What was measured of this machine.
        timeout_seconds: How long to wait for the server.
        measure: Whether to measure the link and the load, too; then the server has to be there.
        on_progress: Called with the bytes that have come and those of all, while a model is fetched.

    Raises:
        ModelNotFoundError: The server does not serve it; or it is not there, and the model is not cached.
        SettingsError: Link and load are to be measured, and the server is not there.
        UnavailableError: Measuring them took too long.
    """
    server = Server(target, DEFAULT_MAX_MESSAGE_BYTES)
    link, load = None, None
    try:
        stored, info, why_not = find_model(server, name, cache, timeout_seconds, on_progress)
        if measure:
            if why_not is not None:
                raise SettingsError(f"bandwidth: expected Mbit/s, since the link cannot be measured: {why_not}")
            link, load = _measure(server, timeout_seconds)
    finally:
        server.close()
    graph = stored.manifest.graph
    curves, profile = Curves(graph, measurements.model()), measurements.profile(stored.manifest.digest)
    heads = curves.head_seconds(profile.heads)
    if info is None:
        source, tails = "heads and tails as on this machine: no server is there", curves.tail_seconds(profile.tails)
    else:
        source, tails = f"heads as on this machine, tails as {target} says", np.array(info.tail_seconds)
    return Network(name, graph, points(graph, heads, tails), source, link, load)


def _measure(server: Server, timeout_seconds: float) -> tuple[LinkReading, ServerLoad]:
    monitor = Monitor(server, lambda _models: None, lambda: True)
    monitor.start()
    try:
        monitor.wait_measured(timeout_seconds)
        link, load = monitor.link.reading, monitor.load
        if link is None or load is None:
            raise UnavailableError(f"no measurement within {timeout_seconds:g} s")
        return link, load
    finally:
        monitor.close()
