"""The plans that can win: those that have the least predicted latency for some link, load and burst.

Only they need to be weighed, and only their segments need to be built ahead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.planning.plan import DEFAULT_CODEC

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadpart_common.planning.plan import PlanKey, Point
    from loadpart_common.tensors import Array

_LEAST_MARGIN = 1e-9
"""Of coordinates scaled to 1: a plan that others tie with for all of its weights need not be kept."""

_BYTES = 1
_TINY = 1e-12


def winning_plans(plans: Sequence[Point]) -> tuple[Point, ...]:
    """The plans that win for some weights, none of them negative, bursts included; in the order given.

    Without bursts a plan's cost is a dot product, and those that can win are the vertices of the lower convex hull of
    the points. Where f bytes cross at once, the cost counts max(bytes - f, 0). As f grows to a plan's own bytes, its
    cost falls by as much as that of any other plan or by more; beyond them, only others' costs fall. So a plan wins for
    some burst exactly if it wins for f = its own bytes, and this burst turns every other plan's bytes into a plain
    coordinate again. Whether it wins then is a matrix game: one player chooses the weights, the other one a plan that
    is to be cheaper; a plan wins for some weights exactly if that game is worth more than nothing to the first.

    The result is the same for devices and links of any speed, since scaling a coordinate only scales its weight.
    """
    matrix = _matrix(plans)
    candidates = _undominated(matrix)
    winners = []
    for row in candidates:
        others = matrix[[other for other in candidates if other != row]]
        if len(others) == 0:
            return (plans[row],)
        if _wins(matrix[row], others):
            winners.append(row)
    return tuple(plans[row] for row in winners)


def worth_building(plans: Iterable[Point], built: Iterable[Point], gain: float) -> list[int]:
    """The cuts of which segments are worth their building, in their order.

    Of the plans that can win, many do so by next to nothing: a cut before the last layer saves a few bytes and a
    microsecond. Building takes a slow device seconds in which it infers nothing, so a cut has to be worth it: a plan of
    it must cost less than all plans with the cuts that are built, by a share of the cost, for some link and load.

    Args:
        plans: The plans that there are.
        built: Those of them whose segments are built; the local one at least.
        gain: That share.
    """
    plans = list(plans)
    kept, cuts = list(built), list[int]()
    points = {point.key: point for point in plans}
    for key in sorted(winning_keys(plans)):
        if points[key] in kept:
            continue
        matrix = _matrix([points[key], *kept])
        if _wins(matrix[0], matrix[1:], gain):
            cuts.append(key.cut)
            kept += [point for point in plans if point.key.cut == key.cut]
    return cuts


def winning_keys(plans: Iterable[Point]) -> set[PlanKey]:
    """The plans that can win with one codec or another: each codec beside the raw plans and the local one, by itself.

    All codecs at once would hide those that lose only to one that an application may not allow.
    """
    plans = list(plans)
    codecs = {point.key.codec for point in plans}
    return {
        point.key
        for codec in codecs
        for point in winning_plans([point for point in plans if point.key.codec in {"", DEFAULT_CODEC, codec}])
    }


def game_value(payoffs: Array) -> float:
    """The value of a matrix game: what its row player can be sure of, if both choose rows and columns at random.

    By the simplex method (Dantzig 1951): with payoffs above 0, the value is 1 over the largest sum of y >= 0 with
    payoffs . y <= 1. There are few rows, so a step costs next to nothing.

    Args:
        payoffs: What the row player gets, shape (rows, columns).
    """
    rows, columns = payoffs.shape
    shift = 1.0 - min(float(payoffs.min()), 0.0)
    # The columns are y, the slack of each row, and the right-hand side; the last row is the objective.
    table = np.zeros((rows + 1, columns + rows + 1))
    table[:rows, :columns] = payoffs + shift
    table[:rows, columns : columns + rows] = np.eye(rows)
    table[:rows, -1] = 1.0 + _TINY * np.arange(rows)  # no ties, in which the method could go round in circles
    table[-1, :columns] = -1.0
    while True:
        entering = int(table[-1, :-1].argmin())
        if table[-1, entering] >= -_TINY:
            return 1.0 / float(table[-1, -1]) - shift
        column = table[:rows, entering]
        ratios = np.full(rows, np.inf)
        np.divide(table[:rows, -1], column, out=ratios, where=column > _TINY)
        leaving = int(ratios.argmin())
        table[leaving] /= table[leaving, entering]
        factors = table[:, entering].copy()
        factors[leaving] = 0.0
        table -= np.outer(factors, table[leaving])


def _matrix(plans: Sequence[Point]) -> Array:
    """The coordinates of plans, scaled so that the largest of each is 1; shape (plans, 4)."""
    matrix = np.array(
        [[p.device_seconds, p.uplink_bytes, p.server_seconds, not p.key.is_local] for p in plans], dtype=float
    )
    scale = matrix.max(axis=0)
    scaled: Array = matrix / np.where(scale > 0, scale, 1.0)
    return scaled


def _wins(own: Array, others: Array, gain: float = 0.0) -> bool:
    """Whether a plan costs less than all others, by a share of their cost, for some weights; see `winning_plans`."""
    own, others = own.copy(), others.copy()
    others[:, _BYTES] = np.maximum(others[:, _BYTES] - own[_BYTES], 0.0)
    own[_BYTES] = 0.0
    return game_value(((1 - gain) * others - own).T) > _LEAST_MARGIN


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
