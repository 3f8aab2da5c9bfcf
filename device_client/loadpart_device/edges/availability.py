"""Whether a server may be asked, after what it has answered: a circuit breaker."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from loadpart_common.errors import AccessError, ServerError
from loadpart_device.edges.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.errors import OffloadError

_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 0.25, 2.0
"""A try costs little, since the device finishes alone when the answer is late."""


class Availability:
    """Whether a server may be asked. Thread-safe.

    One that fails is left alone for a while, each time twice as long, and then tried by one inference: the others stay
    away until it has succeeded. One that says itself when to come back is left alone until then. What else the server
    sends meanwhile, such as its status, proves nothing about inferences; a new connection may lead to a new server.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, backoff: Backoff | None = None) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._backoff = backoff or Backoff(_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS)
        self._is_lost = False
        self._why_not = ""
        self._retry_at = 0.0
        self._refusal: AccessError | None = None

    @property
    def refusal(self) -> AccessError | None:
        """Why the server does not let this device in; None when it does, as far as is known, or it is time to try."""
        return self._refusal if self.why_not else None

    @property
    def why_not(self) -> str | None:
        """Why the server should not be asked now; None when it may be."""
        if not self._why_not:
            return None
        if self._is_lost:
            return self._why_not
        left = self._retry_at - self._clock()
        return f"{self._why_not}; it is tried again in {left:.1f} s" if left > 0 else None

    def begin(self) -> bool:
        """Notes that an inference asks the server; gives whether it is a try after a failure, for which others wait."""
        if not self._backoff.failures:
            return False
        with self._lock:
            self._retry_at = self._clock() + _LAST_RETRY_SECONDS
        return True

    def succeeded(self) -> None:
        """Takes in an answer of an inference."""
        if self._why_not:
            with self._lock:
                self._close()

    def failed(self, error: OffloadError) -> None:
        """Takes in that an inference failed, was late, or was refused."""
        with self._lock:
            self._why_not = f"the server failed: {error}"
            self._refusal = error if isinstance(error, AccessError) else None
            after = error.retry_after_seconds if isinstance(error, ServerError) else None
            self._retry_at = self._clock() + (self._backoff.fail() if after is None else after)

    def lost(self, error: OffloadError) -> None:
        """Takes in that there is no connection."""
        with self._lock:
            self._is_lost, self._why_not = True, f"the server failed: {error}"
            self._refusal = error if isinstance(error, AccessError) else None

    def connected(self) -> None:
        """Takes in that there is a connection. Only one after a loss changes anything."""
        if self._is_lost:
            with self._lock:
                self._is_lost = False
                self._close()

    def recovered(self) -> None:
        """Takes in that what the server lacked is there again."""
        with self._lock:
            if not self._is_lost:
                self._close()

    def _close(self) -> None:
        self._backoff.reset()
        self._why_not, self._retry_at, self._refusal = "", 0.0, None
