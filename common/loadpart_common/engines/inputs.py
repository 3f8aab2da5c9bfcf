"""Inputs to try and to time segments with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from loadpart_common.graph import Graph, Segment
    from loadpart_common.tensors import Array, TensorSpec


def random_inputs(graph: Graph, segment: Segment, seed: int = 0, *, most: float = 100.0) -> list[Array]:
    """Random inputs of a segment, for the smallest batch: whole numbers from 0 to 99, others from `-most` to `most`."""
    rng = np.random.default_rng(seed)
    specs = [graph.spec(value) for value in segment.inputs]
    return [_random(rng, spec, graph.smallest_batch, most) for spec in specs]


def _random(rng: np.random.Generator, spec: TensorSpec, batch: int, most: float) -> Array:
    shares = rng.random(spec.concrete(batch))
    signed = (shares * 2 - 1) * most if "float" in spec.dtype else shares * 100
    return signed.astype(spec.dtype)
