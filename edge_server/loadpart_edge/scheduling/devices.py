"""The devices that use this server."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_edge.scheduling.job import Owner

_ACTIVE_SECONDS = 10.0
_MOST_DEVICES = 100_000  # ids come from devices, so their number must have a bound

MOST_OF_A_PARTY = 64
"""Devices of one party that count: one host must not make all devices believe that the server has thousands."""


class ActiveDevices:
    """Counts the devices that sent a request lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen_at: OrderedDict[Owner, float] = OrderedDict()  # the least lately seen first
        self._of_party: Counter[str] = Counter()

    def seen(self, owner: Owner) -> None:
        """Notes a request of a device."""
        if owner not in self._seen_at:
            self._of_party[owner.party] += 1
        self._seen_at[owner] = self._clock()
        self._seen_at.move_to_end(owner)
        if len(self._seen_at) > _MOST_DEVICES:
            self._forget_first()

    @property
    def count(self) -> int:
        """How many there are."""
        limit = self._clock() - _ACTIVE_SECONDS
        while self._seen_at and next(iter(self._seen_at.values())) < limit:
            self._forget_first()
        return sum([min(number, MOST_OF_A_PARTY) for number in list(self._of_party.values())])

    def _forget_first(self) -> None:
        owner, _ = self._seen_at.popitem(last=False)
        self._of_party[owner.party] -= 1
        if not self._of_party[owner.party]:
            del self._of_party[owner.party]
