"""Whether a server may be asked, after what it has answered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from loadpart_common.errors import AccessError, OverloadedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.errors import OffloadError

_FIRST_RETRY_SECONDS = 0.25
_LAST_RETRY_SECONDS = 8.0


class Availability:
    """Whether a server may be asked.

    One that fails is left alone for a while, each time twice as long, and tried again. One that is overloaded says
    itself when to come back, and is left alone until then, whatever else it sends meanwhile.

    Attributes:
        refusal: Why the server does not let this device in; None when it does, as far as is known.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._why_not = ""
        self._retry_at = 0.0
        self._come_back_at = 0.0
        self.refusal: AccessError | None = None

    @property
    def retry_seconds(self) -> float:
        """Seconds until the server may be asked again; 0 when it may be now."""
        retry_at = max(self._retry_at, self._come_back_at)
        return max(0.0, retry_at - self._clock()) if retry_at else 0.0

    @property
    def why_not(self) -> str | None:
        """Why the server should not be asked now; None when it may be."""
        if not self._why_not:
            return None
        left = self.retry_seconds
        return f"{self._why_not}; it is tried again in {left:.1f} s" if left else None

    def succeeded(self) -> None:
        """Takes in an answer or a status: the server is there."""
        self._failures, self._retry_at, self.refusal = 0, 0.0, None
        if self._clock() >= self._come_back_at:
            self._why_not = ""

    def failed(self, error: OffloadError) -> None:
        """Takes in a failure, or a refusal."""
        self._why_not = f"the server failed: {error}"
        if isinstance(error, OverloadedError) and error.retry_after_seconds is not None:
            self._come_back_at = self._clock() + error.retry_after_seconds
            return
        self.refusal = error if isinstance(error, AccessError) else None
        self._retry_at = self._clock() + min(_FIRST_RETRY_SECONDS * 2**self._failures, _LAST_RETRY_SECONDS)
        self._failures += 1
