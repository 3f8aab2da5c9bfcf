"""The plans that can win: those that have the least predicted latency for some link, load and burst.

Only they need to be weighed, and only their segments need to be built ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadpart_common.planning.plan import Point
    from loadpart_common.tensors import Array

_LEAST_MARGIN = 1e-9
"""Of coordinates scaled to 1: a plan that others tie with for all of its weights need not be kept."""

_BYTES = 1


def winning_plans(plans: Sequence[Point]) -> tuple[Point, ...]:
    """The plans that win for some weights, none of them negative, bursts included; in the order given.

    Without bursts a plan's cost is a dot product, and those that can win are the vertices of the lower convex hull of
    the points. Where f bytes cross at once, the cost counts max(bytes - f, 0). As f grows to a plan's own bytes, its
    cost falls by as much as that of any other plan or by more; beyond them, only others' costs fall. So a plan wins for
    some burst exactly if it wins for f = its own bytes, and this burst turns every other plan's bytes into a plain
    coordinate again. Whether it wins then is a linear programme: a plan wins for no weights exactly if a mixture of
    others is nowhere above it (Farkas' lemma).

    The result is the same for devices and links of any speed, since scaling a coordinate only scales its weight.
    """
    from scipy.optimize import linprog

    matrix = np.array(
        [[p.device_seconds, p.uplink_bytes, p.server_seconds, not p.key.is_local] for p in plans], dtype=float
    )
    scale = matrix.max(axis=0)
    matrix = matrix / np.where(scale > 0, scale, 1.0)
    candidates = _undominated(matrix)
    winners = []
    for row in candidates:
        others = matrix[[other for other in candidates if other != row]]
        if len(others) == 0:
            return (plans[row],)
        own = matrix[row].copy()
        others[:, _BYTES] = np.maximum(others[:, _BYTES] - own[_BYTES], 0.0)
        own[_BYTES] = 0.0
        # Find weights w >= 0 of sum 1 and the largest margin m such that w . other >= w . own + m for every other.
        result = linprog(
            c=[0, 0, 0, 0, -1],
            A_ub=np.hstack([own - others, np.ones((len(others), 1))]),
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
