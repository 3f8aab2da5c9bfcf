"""Measured idle seconds, corrected slowly by the inferences that run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

K = TypeVar("K", bound="Hashable")

_FALL, _RISE = 0.02, 0.002
"""Steps of the logarithm by which an observation moves an anchor: it settles where one in eleven lies below it."""

_FARTHEST = 1.25
"""An anchor stays within this factor of its measurement; slower runs are ignored."""

_WORTH_REDRAWING = 0.02
"""The change, as a share, from which on curves are drawn anew."""


class Anchors(Generic[K]):
    """Idle seconds of some things that run again and again, such as the heads of a network by cut.

    A run under way is never quicker than an idle one except for noise, and slower by any amount when the machine is
    loaded. So each anchor follows a low quantile of what is observed, by small steps up and ten times larger ones down
    (stochastic approximation, Robbins and Monro 1951): an outlier moves it no more than any other run. It stays within
    a quarter of what was measured, and slower runs are ignored, so that a lasting load is not taken for the machine. A
    run that is quicker by more than that proves that the machine was not idle when it was measured.
    """

    def __init__(self) -> None:
        self._seconds: dict[K, float] = {}
        self._measured: dict[K, float] = {}
        self._drawn: dict[K, float] = {}  # as they were when curves were last drawn

    @property
    def seconds(self) -> Mapping[K, float]:
        """The anchors in seconds; those that were never measured are not there."""
        return self._seconds

    def measure(self, key: K, seconds: float) -> None:
        """Takes in an idle measurement; of several the least counts."""
        self._measured[key] = min(seconds, self._measured.get(key, seconds))
        self._seconds[key] = self._drawn[key] = self._measured[key]

    def record(self, key: K, seconds: float) -> bool:
        """As `observe`, but takes the first run of all for an idle measurement, where there can be no better one."""
        if key in self._seconds:
            return self.observe(key, seconds)
        self.measure(key, seconds)
        return True

    def observe(self, key: K, seconds: float) -> bool:
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
