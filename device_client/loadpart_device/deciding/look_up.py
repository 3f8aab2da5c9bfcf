"""Finds out what is to be explained: the network, the server's tails, the link and the load."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.codecs.registry import CODECS
from loadpart_common.errors import SettingsError, UnavailableError
from loadpart_common.latency.curves import Curves
from loadpart_common.latency.measurements import Measurements
from loadpart_common.planning.plan import PlanKey, coded_plans, points, rated_cost, undominated_codecs
from loadpart_common.store.engine_choice import choose_engine
from loadpart_device.allowed_codecs import read_measured
from loadpart_device.codec_costs import CodecCosts
from loadpart_device.deciding.explain import Network
from loadpart_device.edges.edge import Edge
from loadpart_device.edges.probe_budget import ProbeBudget
from loadpart_device.model_cache import find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from loadpart_common.engines.choice import EngineChoice
    from loadpart_device.edges.connection import Connection
    from loadpart_device.edges.link import LinkReading
    from loadpart_device.edges.load import ServerLoad


def look_up(
    name: str,
    connection: Connection,
    *,
    cache: Path,
    latency_folder: Path | None,
    engine: EngineChoice,
    codecs: Sequence[str],
    accuracy_folder: Path,
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
        engine: What the settings say of the engine.
        codecs: Codecs that may be used.
        accuracy_folder: Folder with what `accuracy` measured.
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
    setup, stored = choose_engine(stored, engine)
    graph = stored.graph
    measurements = Measurements(setup, latency_folder)
    curves, profile = Curves(graph, measurements.model()), measurements.profile(stored.manifest.digest)
    heads = curves.head_seconds(profile.heads)
    plans = coded_plans(graph, codecs)
    decode_seconds = {plan: rated_cost(graph, plan, CODECS[plan.codec].rates).decode_seconds for plan in plans}
    if info is None:
        source, tails = "heads and tails as on this machine: no server is there", curves.tail_seconds(profile.tails)
    else:
        source, tails = f"heads as on this machine, tails as {edge.name} says", np.array(info.tail_seconds)
        decode_seconds = {plan: seconds for plan, seconds in decode_seconds.items() if plan.codec in info.codecs}
        decode_seconds |= {
            PlanKey(plan.cut, plan.codec): plan.decode_seconds
            for plan in info.ready_plans
            if PlanKey(plan.cut, plan.codec) in decode_seconds
        }
    costs = CodecCosts(graph, plans)
    costs.time_codecs()
    every = undominated_codecs(points(graph, heads, tails, costs.costs(decode_seconds)))
    measured = read_measured(accuracy_folder, stored.manifest.digest)
    errors = {PlanKey(plan.cut, plan.codec): plan.worst_error for plan in measured}
    return Network(name, graph, tuple(every), source, errors, link, load)


def _measure(edge: Edge, timeout_seconds: float) -> tuple[LinkReading, ServerLoad]:
    edge.start()
    edge.wait_measured(timeout_seconds)
    link, load = edge.link.reading, edge.load
    if link is None or load is None:
        raise UnavailableError(f"no measurement within {timeout_seconds:g} s")
    return link, load
