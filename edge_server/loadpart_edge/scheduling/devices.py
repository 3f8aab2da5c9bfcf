"""The devices that use this server."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_ACTIVE_SECONDS = 10.0
_MOST_DEVICES = 100_000  # ids come from devices, so their number must have a bound


class ActiveDevices:
    """Counts the devices that sent a request lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen_at: OrderedDict[str, float] = OrderedDict()  # by id, the least lately seen first

    def seen(self, device: str) -> None:
        """Notes a request of a device."""
        self._seen_at[device] = self._clock()
        self._seen_at.move_to_end(device)
        if len(self._seen_at) > _MOST_DEVICES:
            self._seen_at.popitem(last=False)

    @property
    def count(self) -> int:
        """How many there are."""
        limit = self._clock() - _ACTIVE_SECONDS
        while self._seen_at and next(iter(self._seen_at.values())) < limit:
            self._seen_at.popitem(last=False)
        return len(self._seen_at)
