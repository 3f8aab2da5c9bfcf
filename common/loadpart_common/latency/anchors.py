"""Measured idle seconds, corrected slowly by the inferences that run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadpart_common.planning.plan import PlanKey

_FALL, _RISE = 0.02, 0.002
"""Steps of the logarithm by which an observation moves an anchor: it settles where one in eleven lies below it."""

_FARTHEST = 1.25
"""An anchor stays within this factor of its measurement; slower runs are ignored."""

_WORTH_REDRAWING = 0.02
"""The change, as a share, from which on curves are drawn anew."""


class Anchors:
    """Idle seconds of the heads, or of the tails, of some plans of a network.

    A run under way is never quicker than an idle one except for noise, and slower by any amount when the machine is
    loaded. So each anchor follows a low quantile of what is observed, by small steps up and ten times larger ones down
    (stochastic approximation, Robbins and Monro 1951): an outlier moves it no more than any other run. It stays within
    a quarter of what was measured, and slower runs are ignored, so that a lasting load is not taken for the machine. A
    run that is quicker by more than that proves that the machine was not idle when it was measured.
    """

    def __init__(self) -> None:
        self._seconds: dict[PlanKey, float] = {}
        self._measured: dict[PlanKey, float] = {}
        self._drawn: dict[PlanKey, float] = {}  # as they were when curves were last drawn

    def get(self, key: PlanKey) -> float | None:
        """The anchor of a plan in seconds; None when it was never measured."""
        return self._seconds.get(key)

    def by_cut(self) -> dict[int, float]:
        """The anchors by cut, as `Curves` takes them; of several plans with one cut the least."""
        least: dict[int, float] = {}
        for key, seconds in self._seconds.items():
            least[key.cut] = min(seconds, least.get(key.cut, seconds))
        return least

    def measure(self, key: PlanKey, seconds: float) -> None:
        """Takes in an idle measurement; of several the least counts."""
        self._measured[key] = min(seconds, self._measured.get(key, seconds))
        self._seconds[key] = self._drawn[key] = self._measured[key]

    def observe(self, key: PlanKey, seconds: float) -> bool:
        """Takes in what a run took; gives whether the anchors have changed enough to draw curves anew."""
        anchor = self._seconds.get(key)
        if anchor is None:
            return False
        if 0 < seconds < self._measured[key] / _FARTHEST:
            self._measured[key] = math.sqrt(self._measured[key] * seconds)  # halfway, since one clock may err
        low, high = self._measured[key] / _FARTHEST, self._measured[key] * _FARTHEST
        if seconds > high:
            return False
        step = math.exp(-_FALL) if seconds < anchor else math.exp(_RISE)
        self._seconds[key] = anchor = min(max(anchor * step, low), high)
        if abs(anchor / self._drawn[key] - 1) < _WORTH_REDRAWING:
            return False
        self._drawn[key] = anchor
        return True
