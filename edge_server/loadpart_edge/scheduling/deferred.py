"""Bookkeeping that is deferred until the reply has been sent and the worker has the core."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS = 0.001

log = logging.getLogger(__name__)


class Deferred:
    """Runs functions together, a millisecond after the first of them was given.

    After a tail, the processor's caches hold tensors, and bookkeeping is slow: it takes as long as replying does.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[Callable[..., object], tuple[object, ...]]] = []

    def __call__(self, function: Callable[..., object], *arguments: object) -> None:
        """Has a function called; those given first go first."""
        if not self._calls:
            asyncio.get_running_loop().call_later(_SECONDS, self._run)
        self._calls.append((function, arguments))

    def _run(self) -> None:
        calls, self._calls = self._calls, []
        for function, arguments in calls:
            try:
                function(*arguments)
            except Exception:  # the others have nothing to do with it
                log.exception("%r failed", function)
