"""Measures this machine: the latency model from a sweep of random networks, and the segments of one network.

The sweep draws networks (see `zoo.synthetic`), cuts each into pieces of a few layers, and times these where they run,
in one engine. Non-negative least squares on relative errors then finds what each operation, byte and call costs.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

from loadpart_common.engines.mindspore.zoo import export_synthetic
from loadpart_common.latency.measurements import engine_name, machine_name
from loadpart_common.latency.model import OTHER, SEGMENT, Curves, LatencyModel, Profile, features, segment_features
from loadpart_common.planning.plans import lower_hull, points

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loadpart_common.engines import Engine, LoadedModel
    from loadpart_common.graph import Graph, Segment

NETWORKS = 40
"""Networks of a sweep; they take two minutes on one core of a server."""

_MOST_LAYERS = 8  # of a piece
_RUNS = 5
_ROUNDS = 8
_SMALL_ERROR = 0.05
_PROFILE_CUTS = 6
_PLAIN = {"calls", "input_bytes", "output_bytes"}


@dataclass(frozen=True)
class Sample:
    """A piece of a network that was timed.

    Attributes:
        amounts: By family and feature, what its seconds are linear in.
        seconds: Median of several runs.
    """

    amounts: Mapping[tuple[str, str], float]
    seconds: float


def calibrate(
    engine: Engine, *, networks: int = NETWORKS, on_progress: Callable[[int, int], None] = lambda _done, _all: None
) -> LatencyModel:
    """Measures the machine that this runs on.

    Args:
        engine: The engine to measure; the calling thread must be its own.
        networks: How many random networks to run.
        on_progress: Called with the networks that are done and those of all.
    """
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="loadpart-calibrate-") as folder:
        for seed in range(networks):
            path = Path(folder) / "network.mindir"
            export_synthetic(seed, path)
            samples += sample_pieces(engine, path, seed)
            path.unlink()
            on_progress(seed + 1, networks)
    return fit(samples, engine.threads)


def sample_pieces(engine: Engine, path: Path, seed: int) -> list[Sample]:
    """Times a network in pieces of one to eight layers, drawn by a seed."""
    rng = np.random.default_rng(seed)
    model = engine.load(path)
    cuts = [cut.index for cut in model.graph.cuts]
    samples, first = [], 0
    while first < model.graph.whole:
        least = first + int(rng.integers(1, _MOST_LAYERS + 1))
        stop = next((cut for cut in cuts if cut >= least), model.graph.whole)
        segment = model.graph.segment(first, stop)
        samples.append(Sample(_amounts(model.graph, segment), engine.idle_seconds(model, segment, runs=_RUNS)))
        first = stop
    engine.unload(model)
    return samples


def fit(samples: list[Sample], threads: int) -> LatencyModel:
    """The latency model that explains samples best."""
    coefficients, error = _least_squares(samples)
    # Operators that no sample has are taken for a mean of the plain ones, which all have the same features.
    plain = {family for family, row in coefficients.items() if family != SEGMENT and row.keys() == _PLAIN}
    pooled, _ = _least_squares([Sample(_pooled(sample.amounts, plain), sample.seconds) for sample in samples])
    coefficients[OTHER] = pooled[OTHER]
    return LatencyModel(coefficients, machine_name(), engine_name(), threads, len(samples), error)


def profile(
    engine: Engine,
    model: LoadedModel,
    latency: LatencyModel,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Profile:
    """Measures heads and tails of one network: of the cuts that can win, and of some that share its seconds out evenly.

    Args:
        engine: The engine; the calling thread must be its own.
        model: The network.
        latency: What is known of the machine.
        on_progress: Called with the segments that are done and those of all.
    """
    cuts = profile_cuts(model.graph, latency)
    heads: dict[int, float] = {}
    tails: dict[int, float] = {}
    for position, cut in enumerate(cuts):
        if cut > 0:
            heads[cut] = engine.idle_seconds(model, model.graph.head(cut), runs=_RUNS)
        if cut < model.graph.whole:
            tails[cut] = engine.idle_seconds(model, model.graph.tail(cut), runs=_RUNS)
        on_progress(position + 1, len(cuts))
    return Profile(heads, tails)


def profile_cuts(graph: Graph, latency: LatencyModel) -> list[int]:
    """The cuts that `profile` measures."""
    curves = Curves(graph, latency)
    plans = points(graph, curves.head_seconds({}), curves.tail_seconds({}))
    return sorted({point.cut for point in lower_hull(plans)} | set(curves.spread_cuts(_PROFILE_CUTS)))


def _amounts(graph: Graph, segment: Segment) -> dict[tuple[str, str], float]:
    amounts = {(SEGMENT, feature): amount for feature, amount in segment_features(graph, segment).items()}
    for layer in graph.layers[segment.first : segment.stop]:
        family, of_layer = features(graph, layer)
        for feature, amount in of_layer.items():
            amounts[family, feature] = amounts.get((family, feature), 0.0) + amount
    return amounts


def _pooled(amounts: Mapping[tuple[str, str], float], plain: set[str]) -> dict[tuple[str, str], float]:
    """Amounts with all plain families as one."""
    pooled: dict[tuple[str, str], float] = {}
    for (family, feature), amount in amounts.items():
        key = (OTHER if family in plain else family, feature)
        pooled[key] = pooled.get(key, 0.0) + amount
    return pooled


def _least_squares(samples: list[Sample]) -> tuple[dict[str, dict[str, float]], float]:
    """Coefficients of 0 or more by family and feature, and the mean error that they leave, as a share.

    Errors are relative, since a millisecond matters less in a hundred than in two. Each round weighs a sample by the
    inverse of the error that the last one left it, which comes near to least absolute deviations: a piece that a noisy
    moment made slow does not count for more than others (iteratively reweighted least squares).
    """
    keys = sorted({key for sample in samples for key in sample.amounts})
    rows = np.array([[sample.amounts.get(key, 0.0) / sample.seconds for key in keys] for sample in samples])
    scale = rows.max(axis=0)
    rows /= scale
    weights = np.ones(len(samples))
    for _ in range(_ROUNDS):
        solution, _ = nnls(rows * weights[:, None], weights)
        errors = np.abs(rows @ solution - 1)
        weights = 1 / np.sqrt(np.maximum(errors, _SMALL_ERROR))
    coefficients: dict[str, dict[str, float]] = {}
    for (family, feature), value in zip(keys, solution / scale, strict=True):
        coefficients.setdefault(family, {})[feature] = float(value)
    return coefficients, float(errors.mean())
