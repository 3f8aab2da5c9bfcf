"""When the device begins its own tail while a server's answer is out, and how much of its time that may waste."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LATE_FACTOR, LATE_SECONDS = 1.3, 0.05
"""An answer is to come within 1.3 times the seconds of the device alone, plus 50 ms."""

_SPARE_SHARE, _SPARE_SECONDS = 0.05, 0.01
"""Of that, what is left for a tail that runs slower than usual."""

_SHARE = 0.01
"""Of the device's time that may go into tails whose outputs are not needed."""

_CREDIT_SECONDS = 10.0  # for faults, in which tails are begun one after another
_SPARING_SECONDS = 0.5
"""When so much was wasted and is not made up for yet, nothing is spared any more."""

_PATIENT = 2.0
_SOONEST_SHARE, _SOONEST_SECONDS = 1.1, 0.005
_DEADLINE_SPARE, _TAIL_SPARE, _SPARE_LEAST_SECONDS = 0.05, 0.15, 0.003  # of a deadline, of a tail, and in any case


def slack_seconds(alone: float) -> float:
    """How much later than the device alone, which takes so many seconds, an answer may be."""
    return (LATE_FACTOR - 1) * alone + LATE_SECONDS


class Hedging:
    """Decides when to hedge. Thread-safe.

    The device begins its tail once the answer is later than predicted by the margin of error of the predictions, or
    sooner where that would be too late for the answer to come within `LATE_FACTOR` times the device alone plus
    `LATE_SECONDS`, with some time to spare. A tail that was not needed is a waste: the more was wasted lately, the less
    time is spared, and when far more than 1 % of the time was, tails are begun only where a prediction was far off.

    Attributes:
        is_on: Whether to hedge at all.
        wasted_seconds: Seconds that went into tails whose outputs were not needed.
    """

    def __init__(self, *, is_on: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        """Makes one.

        Args:
            is_on: Whether to hedge at all; if not, the device only begins its tail when a deadline demands it.
            clock: Tells the time, in seconds.
        """
        self.is_on = is_on
        self._clock = clock
        self._lock = threading.Lock()
        self._paid_at = clock()
        self.wasted_seconds = 0.0

    def wait_seconds(
        self,
        predicted: float | None,
        margin: Callable[[float], float],
        alone: float,
        tail: float,
        deadline: float | None,
    ) -> float:
        """Seconds from the start of an inference after which the device begins its own tail; may be infinite.

        Args:
            predicted: Latency that was predicted; None when there was nothing to go by.
            margin: Gives the margin of error of a prediction, in seconds.
            alone: What the device takes for the whole network.
            tail: What it takes for the tail.
            deadline: Seconds within which an answer is wanted; None when any time will do.
        """
        after = math.inf
        if self.is_on:
            owed = self._owed_seconds()
            spare = (_SPARE_SHARE * alone + _SPARE_SECONDS) * max(1 - owed / _SPARING_SECONDS, 0.0)
            in_time = alone + slack_seconds(alone) - tail - spare
            if predicted is None:
                after = in_time
            elif owed > _CREDIT_SECONDS:
                after = predicted + _PATIENT * margin(predicted)
            else:
                soonest = _SOONEST_SHARE * predicted + _SOONEST_SECONDS
                after = min(predicted + margin(predicted), max(in_time, soonest))
        if deadline is not None:
            spare = deadline * _DEADLINE_SPARE + tail * _TAIL_SPARE + _SPARE_LEAST_SECONDS
            after = min(after, deadline - tail - spare)
        return after

    def wasted(self, seconds: float) -> None:
        """Takes in that a tail of so many seconds was not needed."""
        with self._lock:
            self.wasted_seconds += seconds
            self._paid_at = max(self._paid_at, self._clock()) + seconds / _SHARE

    def _owed_seconds(self) -> float:
        """Seconds that were wasted and are not yet made up for."""
        return max(self._paid_at - self._clock(), 0.0) * _SHARE
