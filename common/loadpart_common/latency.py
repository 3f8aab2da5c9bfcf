"""Seconds that heads and tails of a network take on one machine when nothing else runs on it.

A prior gives every layer a share, from its operations and the bytes that it moves. Measured segments then fix the
seconds at their cuts, and the prior only fills the stretches between them, in proportion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadpart_common.graph import Graph, Layer
    from loadpart_common.tensors import Array

_SECONDS_PER_LAYER = 8e-6
_SECONDS_PER_BYTE = 1 / 8e9
_SECONDS_PER_FLOP = {"convolution": 1 / 100e9, "depthwise": 1 / 2e9, "other": 1 / 8e9}
"""Of one AVX-512 core with MindSpore 2.8; only their proportions matter once a segment has been measured."""


def layer_seconds(graph: Graph) -> Array:
    """The prior: seconds of each layer, one item of the batch, shape (layers,)."""
    return np.array([_layer_seconds(graph, layer) for layer in graph.layers])


def head_seconds(graph: Graph, measured: Mapping[int, float]) -> Array:
    """Seconds of the head of every cut from 0 to the number of layers, shape (layers + 1,).

    Args:
        graph: The network.
        measured: Idle seconds of heads, by cut; may be empty.
    """
    return _through_anchors(np.concatenate([[0.0], np.cumsum(layer_seconds(graph))]), {0: 0.0, **measured})


def tail_seconds(graph: Graph, measured: Mapping[int, float]) -> Array:
    """Seconds of the tail of every cut from 0 to the number of layers, shape (layers + 1,).

    Args:
        graph: The network.
        measured: Idle seconds of tails, by cut; may be empty.
    """
    prior = np.concatenate([[0.0], np.cumsum(layer_seconds(graph)[::-1])])
    anchors = {graph.whole - cut: seconds for cut, seconds in measured.items()}
    return _through_anchors(prior, {0: 0.0, **anchors})[::-1]


def _through_anchors(prior: Array, anchors: Mapping[int, float]) -> Array:
    """A rising curve through the anchors (position: seconds) that between them runs as the prior does."""
    positions = np.array(sorted(anchors))
    values = np.maximum.accumulate([anchors[position] for position in positions])
    if len(positions) == 1:
        return prior
    curve = np.interp(prior, prior[positions], values)
    last = positions[-1]
    curve[last:] = values[-1] + (prior[last:] - prior[last]) * (values[-1] / max(prior[last], 1e-12))
    return curve


def _layer_seconds(graph: Graph, layer: Layer) -> float:
    read = sum(graph.spec(value).nbytes(1) for value in layer.inputs)
    moved = read + layer.outputs[0].nbytes(1) + layer.weight_bytes
    kind = "other"
    if layer.kind.startswith(("Conv", "MatMul", "Dense", "BatchMatMul")):
        # A depthwise convolution has few operations an element; it runs far below the rate of a dense one.
        kind = "depthwise" if layer.flops <= 64 * max(layer.outputs[0].nbytes(1) // 4, 1) else "convolution"
    return _SECONDS_PER_LAYER + moved * _SECONDS_PER_BYTE + layer.flops * _SECONDS_PER_FLOP[kind]
