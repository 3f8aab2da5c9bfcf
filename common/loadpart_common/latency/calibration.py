"""Calibrates this machine: runs a sweep of random networks and fits the latency model to what they took.

The engine draws the networks. Each is cut into pieces, which are timed where they run, in one engine.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.engines.adopted import adopt_into
from loadpart_common.engines.timing import idle_seconds
from loadpart_common.formats.registry import format_of
from loadpart_common.latency.features import SEGMENT, features, segment_features
from loadpart_common.latency.fitting import Sample, fit

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.engines.segment_cache import SegmentCache
    from loadpart_common.graph import Graph, Segment
    from loadpart_common.latency.model import LatencyModel

NETWORKS = 40
"""Networks of a sweep; they take two minutes on one core of a server."""

_LENGTHS = (1, 2, 3, 5, 8, 13)
"""Of pieces, in cuts: what a piece costs as such shows only where there are long ones, too."""
_TILINGS = 2
"""How often each network is cut into pieces, in other places each time."""

_RUNS = 5


def calibrate(
    cache: SegmentCache,
    *,
    networks: int = NETWORKS,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> LatencyModel:
    """Measures the machine that this runs on.

    Args:
        cache: Of the engine to measure; the calling thread must be the engine's own, if it needs one.
        networks: How many random networks to run.
        on_progress: Called with the networks that are done and those of all.
    """
    engine = cache.engine
    samples: list[Sample] = []
    for seed in range(networks):
        with tempfile.TemporaryDirectory(prefix="loadpart-calibrate-") as folder:
            samples += sample_pieces(cache, engine.write_random_network(seed, Path(folder)), seed)
        on_progress(seed + 1, networks)
    return fit(samples, engine.setup)


def sample_pieces(cache: SegmentCache, path: Path, seed: int) -> list[Sample]:
    """Times a network in pieces between one and thirteen cuts, drawn by a seed."""
    rng = np.random.default_rng(seed)
    model_format = format_of(path)
    assert model_format is not None  # engines write models of a format that they take
    adopted = path.parent / "adopted"
    adopted.mkdir()
    with contextlib.closing(model_format.open(path)) as file:
        adopt_into(adopted, cache.engine.setup, file, trying=False)
    model = cache.load(path, model_format.name, adopted=adopted)
    graph = model.graph
    cuts = [cut.index for cut in graph.cuts]
    samples = []
    for _ in range(_TILINGS):
        position = 0
        while position < len(cuts) - 1:
            following = min(position + int(rng.choice(_LENGTHS)), len(cuts) - 1)
            segment = graph.segment(cuts[position], cuts[following])
            samples.append(Sample(_amounts(graph, segment), idle_seconds(cache, model, segment, runs=_RUNS)))
            position = following
    cache.unload(model)
    return samples


def _amounts(graph: Graph, segment: Segment) -> dict[tuple[str, str], float]:
    amounts = {(SEGMENT, feature): amount for feature, amount in segment_features(graph, segment).items()}
    for layer in graph.layers[segment.first : segment.stop]:
        family, of_layer = features(graph, layer)
        for feature, amount in of_layer.items():
            amounts[family, feature] = amounts.get((family, feature), 0.0) + amount
    return amounts
