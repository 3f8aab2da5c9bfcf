"""Calibrates this machine: runs a sweep of random networks and fits the latency model to what they took.

The engine draws the networks. Each is cut into pieces of a few layers, which are timed where they run, in one engine.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

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

_MOST_LAYERS = 8  # of a piece
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
    with tempfile.TemporaryDirectory(prefix="loadpart-calibrate-") as folder:
        for seed in range(networks):
            path = engine.write_random_network(seed, Path(folder))
            samples += sample_pieces(cache, path, seed)
            path.unlink()
            on_progress(seed + 1, networks)
    return fit(samples, engine.setup)


def sample_pieces(cache: SegmentCache, path: Path, seed: int) -> list[Sample]:
    """Times a network in pieces of one to eight layers, drawn by a seed."""
    rng = np.random.default_rng(seed)
    model_format = format_of(path)
    assert model_format is not None  # engines write models of a format that they take
    model = cache.load(path, model_format.name)
    cuts = [cut.index for cut in model.graph.cuts]
    samples, first = [], 0
    while first < model.graph.layer_count:
        least = first + int(rng.integers(1, _MOST_LAYERS + 1))
        stop = next((cut for cut in cuts if cut >= least), model.graph.layer_count)
        segment = model.graph.segment(first, stop)
        samples.append(Sample(_amounts(model.graph, segment), idle_seconds(cache, model, segment, runs=_RUNS)))
        first = stop
    cache.unload(model)
    return samples


def _amounts(graph: Graph, segment: Segment) -> dict[tuple[str, str], float]:
    amounts = {(SEGMENT, feature): amount for feature, amount in segment_features(graph, segment).items()}
    for layer in graph.layers[segment.first : segment.stop]:
        family, of_layer = features(graph, layer)
        for feature, amount in of_layer.items():
            amounts[family, feature] = amounts.get((family, feature), 0.0) + amount
    return amounts
