"""How long segments take on an idle machine."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from loadpart_common.engines.inputs import random_inputs

if TYPE_CHECKING:
    from loadpart_common.engines.segment_cache import CachedModel, SegmentCache
    from loadpart_common.graph import Segment

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
