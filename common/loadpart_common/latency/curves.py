"""Idle seconds of every head and tail of one network, from the latency model and what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadpart_common.graph import Graph
    from loadpart_common.latency.model import LatencyModel
    from loadpart_common.tensors import Array


class Curves:
    """Idle seconds of the head and the tail of every cut of a network.

    Measured segments fix the curve at their cuts; the latency model fills the stretches between them.
    """

    def __init__(self, graph: Graph, model: LatencyModel) -> None:
        self._graph = graph
        layers = np.concatenate([[0.0], np.cumsum(model.layer_seconds(graph))])
        self._before, self._after = layers, layers[-1] - layers
        self._head_extra, self._tail_extra = np.zeros(graph.layer_count + 1), np.zeros(graph.layer_count + 1)
        for cut in graph.cuts:
            if cut.index > 0:
                self._head_extra[cut.index] = model.segment_seconds(graph, graph.head(cut.index))
            if cut.index < graph.layer_count:
                self._tail_extra[cut.index] = model.segment_seconds(graph, graph.tail(cut.index))

    def head_seconds(self, measured: Mapping[int, float]) -> Array:
        """Seconds of the head of every cut from 0 to the number of layers, shape (layers + 1,).

        Args:
            measured: Idle seconds of heads, by cut; may be empty.
        """
        return _through(self._before, self._head_extra, {0: 0.0, **measured})

    def tail_seconds(self, measured: Mapping[int, float]) -> Array:
        """Seconds of the tail of every cut from 0 to the number of layers, shape (layers + 1,).

        Args:
            measured: Idle seconds of tails, by cut; may be empty.
        """
        last = self._graph.layer_count
        anchors = {last - cut: seconds for cut, seconds in {last: 0.0, **measured}.items()}
        return _through(self._after[::-1], self._tail_extra[::-1], anchors)[::-1]

    def spread_cuts(self, number: int) -> list[int]:
        """Valid cuts that share the network's seconds out evenly, both ends among them; at most `number` + 1."""
        cuts = [cut.index for cut in self._graph.cuts]
        targets = np.linspace(0.0, self._before[-1], number + 1)
        return sorted({min(cuts, key=lambda cut: abs(self._before[cut] - target)) for target in targets})


def _through(layers: Array, extra: Array, anchors: Mapping[int, float]) -> Array:
    """A curve through the anchors (position: seconds) that rises between them in proportion to `layers`."""
    positions = np.array(sorted(anchors))
    values = np.maximum.accumulate([max(anchors[position] - extra[position], 0.0) for position in positions])
    if len(positions) == 1:
        return layers + extra
    curve = np.interp(layers, layers[positions], values)
    last = positions[-1]
    curve[last:] = values[-1] + (layers[last:] - layers[last]) * (values[-1] / max(layers[last], 1e-12))
    return curve + extra
