"""Inputs to try and to time segments with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from loadpart_common.graph import Graph, Segment
    from loadpart_common.tensors import Array, TensorSpec


_PERIOD = 7.0
"""Elements over which the phase of the first wave grows by one."""


def random_inputs(graph: Graph, segment: Segment, seed: int = 0, *, most: float = 100.0) -> list[Array]:
    """Random inputs of a segment, for the smallest batch: whole numbers from 0 to 99, others from `-most` to `most`."""
    rng = np.random.default_rng(seed)
    specs = [graph.spec(value) for value in segment.inputs]
    return [_random(rng, spec, graph.smallest_batch, most) for spec in specs]


def _random(rng: np.random.Generator, spec: TensorSpec, batch: int, most: float) -> Array:
    shares = rng.random(spec.concrete(batch))
    signed = (shares * 2 - 1) * most if "float" in spec.dtype else shares * 100
    return signed.astype(spec.dtype)


def smooth_inputs(graph: Graph, segment: Segment, *, most: float = 100.0) -> list[Array]:
    """Inputs of a segment that change slowly, as pictures do, for the smallest batch: waves along every dimension.

    Whole numbers go from 0 to 99, others from `-most` to `most`.
    """
    specs = [graph.spec(value) for value in segment.inputs]
    return [_smooth(spec, graph.smallest_batch, most) for spec in specs]


def _smooth(spec: TensorSpec, batch: int, most: float) -> Array:
    shape = spec.concrete(batch)
    waves = np.zeros(shape)
    for axis, size in enumerate(shape):
        along = np.sin(np.arange(size) / (_PERIOD + 4 * axis) + axis)
        waves += along.reshape([size if each == axis else 1 for each in range(len(shape))])
    waves /= max(len(shape), 1)
    return (waves * most if "float" in spec.dtype else (waves + 1) * 49.5).astype(spec.dtype)
