"""What the running time of a layer or a segment is linear in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from loadpart_common.families import Family

if TYPE_CHECKING:
    from loadpart_common.graph import Graph, Layer, Segment

_FLOAT_BYTES = 4

SEGMENT = "segment"
"""The row of what a segment costs beside its layers: entering the engine, taking and giving tensors."""

OTHER = str(Family.OTHER)
"""The row of operators that the calibration did not meet."""


def features(graph: Graph, layer: Layer) -> tuple[str, dict[str, float]]:
    """The row of the latency model that a layer belongs to, and what its seconds are linear in, for one item.

    Every row has `calls`, which is 1 for each layer. Convolutions run as matrix products: a 1x1 convolution reads its
    input in place, a larger or strided one gathers patches first (`patch_bytes`), a grouped one works row by row.
    """
    family = layer.family
    output = layer.outputs[0]
    shape = output.concrete(1)
    read = float(sum(graph.spec(value).nbytes(1) for value in layer.inputs))
    written = float(output.nbytes(1))
    if family is Family.CONVOLUTION and len(shape) == 4 and layer.inputs:
        return _convolution(layer, shape, graph.spec(layer.inputs[0]).concrete(1), read, written)
    if family is Family.MATRIX_PRODUCT:
        return str(family), {"calls": 1.0, "flops": float(layer.flops), "weight_bytes": float(layer.weight_bytes)}
    if family is Family.POOLING:
        rows = float(math.prod(shape[:3]))
        return str(family), {"calls": 1.0, "flops": float(layer.flops), "output_bytes": written, "rows": rows}
    return str(family), {"calls": 1.0, "input_bytes": read, "output_bytes": written}


def _convolution(
    layer: Layer, output: tuple[int, ...], read_from: tuple[int, ...], read: float, written: float
) -> tuple[str, dict[str, float]]:
    taps = layer.flops / 2 / max(math.prod(output), 1)  # input channels a group x kernel height x kernel width
    channels, positions = read_from[1], math.prod(output[2:])
    if taps < channels:
        return "grouped convolution", {
            "calls": 1.0,
            "flops": float(layer.flops),
            "outputs": float(math.prod(output)),
            "rows": float(output[1] * output[2]),
        }
    work = {"calls": 1.0, "flops": float(layer.flops), "weight_bytes": float(layer.weight_bytes)}
    patches = taps * positions * _FLOAT_BYTES
    if taps == channels:
        strided = read_from[2:] != output[2:]
        return "1x1 convolution", {
            **work, "input_bytes": read, "output_bytes": written, "patch_bytes": patches if strided else 0.0,
        }  # fmt: skip
    return str(Family.CONVOLUTION), {**work, "output_bytes": written, "patch_bytes": patches}


def segment_features(graph: Graph, segment: Segment) -> dict[str, float]:
    """The amounts that the cost of a segment beside its layers is linear in."""
    return {
        "calls": 1.0,
        "input_bytes": float(sum(graph.spec(value).nbytes(1) for value in segment.inputs)),
        "output_bytes": float(sum(graph.spec(value).nbytes(1) for value in segment.outputs)),
    }
