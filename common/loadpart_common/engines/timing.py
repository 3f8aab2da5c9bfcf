"""How long segments take on an idle machine."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from loadpart_common.engines.segment_cache import CachedModel, SegmentCache
    from loadpart_common.graph import Graph, Segment
    from loadpart_common.tensors import Array, TensorSpec

_PAUSE_SECONDS = 0.02
"""Between runs: without it a run finds its data in warmer caches than an inference does."""


def idle_seconds(cache: SegmentCache, model: CachedModel, segment: Segment, *, runs: int) -> float:
    """Seconds that a segment takes for one item: the median of some runs on random values.

    Args:
        cache: Where the segment is; it is compiled first if need be.
        model: The network.
        segment: The segment.
        runs: How many runs.

    Raises:
        ModelError: The engine cannot compile it.
    """
    batch = model.graph.smallest_batch
    compiled = cache.segment(model, segment, batch)
    arrays = random_inputs(model.graph, segment)
    seconds = []
    for number in range(runs):
        if number:
            time.sleep(_PAUSE_SECONDS)
        started = time.perf_counter()
        compiled.run(arrays)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) / batch


def random_inputs(graph: Graph, segment: Segment, seed: int = 0) -> list[Array]:
    """Random inputs of a segment, for the smallest batch: whole numbers from 0 to 99, others from -100 to 100."""
    rng = np.random.default_rng(seed)
    specs = [graph.spec(value) for value in segment.inputs]
    arrays = [rng.random(spec.concrete(graph.smallest_batch)) * 100 for spec in specs]
    return [_signed(rng, array, spec).astype(spec.dtype) for array, spec in zip(arrays, specs, strict=True)]


def _signed(rng: np.random.Generator, array: Array, spec: TensorSpec) -> Array:
    return array * rng.choice((-1, 1), array.shape) if "float" in spec.dtype else array
