"""Finds out what is to be explained: the network, the server's tails, the link and the load."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.codecs.registry import CODECS
from loadpart_common.errors import OffloadError, SettingsError, UnavailableError
from loadpart_common.latency.curves import Curves
from loadpart_common.latency.measurements import Measurements
from loadpart_common.planning.plan import PlanKey, coded_plans, points, rated_cost, undominated_codecs
from loadpart_common.store.engine_choice import choose_engine
from loadpart_device.allowed_codecs import read_measured
from loadpart_device.codec_costs import CodecCosts
from loadpart_device.deciding.explain import Network
from loadpart_device.edges.fleet import Fleet
from loadpart_device.model_cache import find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from loadpart.v1 import offload_pb2
    from loadpart_common.engines.choice import EngineChoice
    from loadpart_common.tensors import Array
    from loadpart_common.wire.endpoint import Endpoint
    from loadpart_device.edges.edge import Edge
    from loadpart_device.edges.link import LinkReading
    from loadpart_device.edges.load import ServerLoad
    from loadpart_device.model_cache import FoundModel


def look_up(
    name: str,
    servers: Sequence[Endpoint],
    *,
    cache: Path,
    latency_folder: Path | None,
    engine: EngineChoice,
    codecs: Sequence[str],
    accuracy_folder: Path,
    timeout_seconds: float,
    measure: bool,
    on_progress: Callable[[int, int], None],
) -> list[Network]:
    """A network with each server that serves it: what its heads cost on this machine and its tails there.

    When no server is there, the network is the cached one and the tails cost what they would cost here.

    Args:
        name: Name of the model.
        servers: The servers.
        cache: Folder of fetched models.
        latency_folder: Folder with what was measured of this machine; the usual one when None.
        engine: What the settings say of the engine.
        codecs: Codecs that may be used.
        accuracy_folder: Folder with what `accuracy` measured.
        timeout_seconds: How long to wait for the servers.
        measure: Whether to measure links and loads, too; then a server has to be there.
        on_progress: Called with the bytes that have come and those of all, while a model is fetched.

    Raises:
        ModelNotFoundError: No server serves it; or none is there, and the model is not cached.
        SettingsError: Link and load are to be measured, and no server is there.
        UnavailableError: Measuring them took too long.
    """
    links: dict[str, tuple[LinkReading, ServerLoad]] = {}
    with contextlib.closing(Fleet(servers, timeout_seconds=timeout_seconds)) as fleet:
        found = find_model([edge.connection for edge in fleet], name, cache, timeout_seconds, on_progress)
        if measure:
            if not found.infos:
                why = next(iter(found.errors.values()), "no name leads to a server")
                raise SettingsError(f"bandwidth: expected Mbit/s, since the link cannot be measured: {why}")
            fleet.start()
            fleet.wait_measured(timeout_seconds)
            for edge in fleet:
                if (link := edge.link.reading) is not None and (load := edge.load) is not None:
                    links[edge.name] = link, load
            if not links:
                raise UnavailableError(f"no measurement within {timeout_seconds:g} s")
        infos = {edge.name: info for edge in fleet if (info := _info(edge, name, found, timeout_seconds)) is not None}
    setup, stored = choose_engine(found.stored, engine)
    graph, digest = stored.graph, stored.manifest.digest
    measurements = Measurements(setup, latency_folder)
    curves, profile = Curves(graph, measurements.model()), measurements.profile(digest)
    heads = curves.head_seconds(profile.heads)
    costs = CodecCosts(graph, coded_plans(graph, codecs))
    costs.time_codecs()
    errors = {PlanKey(plan.cut, plan.codec): plan.worst_error for plan in read_measured(accuracy_folder, digest)}

    def network(server: str, source: str, tails: Array, decode_seconds: Mapping[PlanKey, float]) -> Network:
        every = undominated_codecs(points(graph, heads, tails, costs.costs(decode_seconds)))
        link, load = links.get(server, (None, None))
        return Network(name, server, graph, tuple(every), source, errors, link, load)

    decode_seconds = {
        plan: rated_cost(graph, plan, CODECS[plan.codec].rates).decode_seconds for plan in coded_plans(graph, codecs)
    }
    networks = [
        network(
            server,
            f"heads as on this machine, tails as {server} says",
            np.array(info.tail_seconds),
            _decode_seconds(info, decode_seconds),
        )
        for server, info in infos.items()
        if info.digest == digest and (server in links or not measure)
    ]
    here = "heads and tails as on this machine: no server is there"
    return networks or [network("", here, curves.tail_seconds(profile.tails), decode_seconds)]


def _info(edge: Edge, name: str, found: FoundModel, timeout_seconds: float) -> offload_pb2.ModelInfo | None:
    """What a server says of a model; None when it does not serve it, or does not answer."""
    if edge.name in found.infos or edge.name in found.errors:
        return found.infos.get(edge.name)
    try:
        return edge.connection.list_models(timeout_seconds).get(name)
    except OffloadError:
        return None


def _decode_seconds(info: offload_pb2.ModelInfo, rated: Mapping[PlanKey, float]) -> dict[PlanKey, float]:
    """What a server takes to decode what crosses: as it says, or as codecs are rated where it has not measured."""
    known = {plan: seconds for plan, seconds in rated.items() if plan.codec in info.codecs}
    told = {PlanKey(plan.cut, plan.codec): plan.decode_seconds for plan in info.ready_plans}
    return known | {plan: seconds for plan, seconds in told.items() if plan in known}
