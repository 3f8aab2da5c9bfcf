"""The decision: plans are points, the state of the world is a weight vector, and the least dot product wins.

A plan's point is (device seconds, uplink bytes, server seconds, remote: 0 or 1), all idle figures. The weights are
(device slow-down, seconds per byte, server slow-down, round trip and queue wait). Predicted latency is their product,
so a plan that is no vertex of the lower convex hull of the points wins for no weights at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadpart_common.graph import Graph
    from loadpart_common.tensors import Array


_LEAST_MARGIN = 1e-9
"""Of coordinates scaled to 1: a plan that others tie with for all of its weights need not be kept."""


@dataclass(frozen=True, slots=True)
class Point:
    """A plan as a point.

    Attributes:
        cut: Layers on the device.
        device_seconds: Idle seconds of the head.
        uplink_bytes: Bytes that cross.
        server_seconds: Idle seconds of the tail.
        remote: Whether the server is asked at all.
    """

    cut: int
    device_seconds: float
    uplink_bytes: int
    server_seconds: float
    remote: bool


class Weights(NamedTuple):
    """The state of the world.

    Attributes:
        device_slow_down: Measured over predicted seconds of heads.
        seconds_per_byte: Of the uplink.
        server_slow_down: Measured over predicted seconds of tails.
        fixed_seconds: What any remote plan costs: round trip, queue wait, reply.
        free_bytes: Bytes that the uplink carries at once; only those beyond cost time.
        others_seconds: Waiting that any remote plan causes to other devices, as far as it is to count.
    """

    device_slow_down: float
    seconds_per_byte: float
    server_slow_down: float
    fixed_seconds: float
    free_bytes: float = 0.0
    others_seconds: float = 0.0


class Plans:
    """The plans that may be chosen, ready for fast decisions.

    Attributes:
        points: The plans, in the order of their cuts.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        if not points:
            raise ValueError("expected at least one plan")
        self.points = tuple(sorted(points, key=lambda point: point.cut))
        # Numbers and not an array: for a handful of plans numpy takes longer to call than this takes to run.
        self._rows = [(p.device_seconds, p.uplink_bytes, p.server_seconds, float(p.remote)) for p in self.points]
        self._position = {point.cut: position for position, point in enumerate(self.points)}

    def seconds(self, weights: Weights, batch: int = 1) -> list[float]:
        """Cost of every plan, in the order of `points`: its predicted latency, and what it costs others."""
        device = weights.device_slow_down * batch
        link, free = weights.seconds_per_byte, weights.free_bytes
        server = weights.server_slow_down * batch
        fixed = weights.fixed_seconds + weights.others_seconds
        costs = []
        for head, nbytes, tail, remote in self._rows:
            cost = head * device + tail * server + remote * fixed
            if nbytes * batch > free:
                cost += (nbytes * batch - free) * link
            costs.append(cost)
        return costs

    def choose(
        self, weights: Weights, batch: int = 1, *, current: int | None = None, threshold: float = 0.0
    ) -> tuple[Point, float]:
        """The plan with the least cost, and its predicted latency in seconds.

        Args:
            weights: The state of the world.
            batch: Items of the batch; points are for one.
            current: Cut of the plan in use, which is kept unless another gains more than `threshold`.
            threshold: Least gain that is worth a switch, as a share of the current plan's latency.
        """
        seconds = self.seconds(weights, batch)
        best = seconds.index(min(seconds))
        kept = self._position.get(current) if current is not None else None
        if kept is not None and seconds[best] > seconds[kept] * (1 - threshold):
            best = kept
        return self._with_latency(best, seconds, weights)

    def seconds_of(self, cut: int, weights: Weights, batch: int = 1) -> tuple[Point, float] | None:
        """The plan with a cut, and its predicted latency in seconds; None when it is not among the plans."""
        position = self._position.get(cut)
        return None if position is None else self._with_latency(position, self.seconds(weights, batch), weights)

    def _with_latency(self, position: int, seconds: list[float], weights: Weights) -> tuple[Point, float]:
        point = self.points[position]
        return point, seconds[position] - weights.others_seconds * point.remote


def points(graph: Graph, head_seconds: Array, tail_seconds: Array) -> tuple[Point, ...]:
    """The point of every valid cut.

    Args:
        graph: The network.
        head_seconds: Idle seconds of the head of each cut on the device, shape (layers + 1,).
        tail_seconds: Idle seconds of the tail of each cut on the server, shape (layers + 1,).
    """
    return tuple(
        Point(
            cut.index,
            float(head_seconds[cut.index]),
            cut.nbytes() if cut.index < graph.whole else 0,
            float(tail_seconds[cut.index]) if cut.index < graph.whole else 0.0,
            cut.index < graph.whole,
        )
        for cut in graph.cuts
    )


def _as_matrix(plans: Sequence[Point]) -> Array:
    """Points as rows, shape (plans, 4)."""
    return np.array([[p.device_seconds, p.uplink_bytes, p.server_seconds, p.remote] for p in plans], dtype=float)


def lower_hull(plans: Sequence[Point]) -> tuple[Point, ...]:
    """The plans that win for some weights, none of them negative; in the order given.

    A plan wins for no weights exactly if a mixture of others is nowhere above it (Farkas' lemma), which a linear
    programme decides for each plan that no single other one dominates. The hull is the same for devices or links of
    any speed, since scaling a coordinate only scales its weight.
    """
    from scipy.optimize import linprog

    matrix = _as_matrix(plans)
    scale = matrix.max(axis=0)
    matrix = matrix / np.where(scale > 0, scale, 1.0)
    candidates = _undominated(matrix)
    winners = []
    for row in candidates:
        others = matrix[[other for other in candidates if other != row]]
        if len(others) == 0:
            return (plans[row],)
        # Find weights w >= 0 of sum 1 and the largest margin m such that w . other >= w . row + m for every other.
        gap = np.hstack([matrix[row] - others, np.ones((len(others), 1))])
        result = linprog(
            c=[0, 0, 0, 0, -1],
            A_ub=gap,
            b_ub=np.zeros(len(others)),
            A_eq=[[1, 1, 1, 1, 0]],
            b_eq=[1],
            bounds=[(0, None)] * 4 + [(None, None)],
            method="highs",
        )
        if result.status != 0 or result.x[4] > _LEAST_MARGIN:
            winners.append(row)
    return tuple(plans[row] for row in winners)


def _undominated(matrix: Array) -> list[int]:
    """Rows that no other row is as good as everywhere; of equal rows the first."""
    kept = []
    for row, point in enumerate(matrix):
        no_worse = (matrix <= point).all(axis=1)
        better = no_worse & (matrix < point).any(axis=1)
        equal_before = (matrix[:row] == point).all(axis=1).any()
        if not better.any() and not equal_before:
            kept.append(row)
    return kept
