"""How much later than predicted the answers of a server come."""

from __future__ import annotations

from collections import deque

_ANSWERS = 128
_ENOUGH = 20
_FIRST_SHARE, _FIRST_SECONDS = 0.5, 0.02
_BEYOND = 1.1
_LEAST_SECONDS = 0.002


class Lateness:
    """The error of the predictions, from the latest answers."""

    def __init__(self) -> None:
        self._errors: deque[float] = deque(maxlen=_ANSWERS)

    def record(self, predicted_seconds: float, seconds: float) -> None:
        """Takes in an answer: the latency that was predicted, and the one that came."""
        self._errors.append(seconds - predicted_seconds)

    def forget(self) -> None:
        """Drops all answers, because link or server have changed."""
        self._errors.clear()

    def margin_seconds(self, predicted_seconds: float) -> float:
        """By how much an answer may be later than predicted; when all is well, hardly one in a hundred is later.

        A little beyond the largest error of the latest 128 answers. Before there are twenty: at least half of what was
        predicted, and 20 ms.
        """
        largest = max(self._errors, default=0.0)
        margin = max(largest * _BEYOND, 0.0) + _LEAST_SECONDS
        if len(self._errors) < _ENOUGH:
            margin = max(margin, predicted_seconds * _FIRST_SHARE, _FIRST_SECONDS)
        return margin
