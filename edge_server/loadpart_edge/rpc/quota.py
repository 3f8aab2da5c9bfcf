"""Bounds on what devices hold at a time: calls, streams, bytes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from loadpart_common.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadpart_edge.scheduling.job import Owner

_RETRY_SECONDS = 0.5


class QuotaError(OverloadedError):
    """A device, or its party, holds too much at a time."""


class Quota:
    """At most so much at a time, in all, for one party, and for one device of it."""

    def __init__(self, what: str, *, in_all: int, of_party: int, of_device: int) -> None:
        """Makes a quota that nothing is taken of.

        Args:
            what: What is counted, for messages.
            in_all: The most that all hold together.
            of_party: The most that one party holds.
            of_device: The most that one device holds.
        """
        self._what = what
        self._in_all, self._most_of_party, self._of_device = in_all, of_party, of_device
        self._by_party: dict[str, int] = {}
        self._by_device: dict[Owner, int] = {}
        self.taken = 0

    def take(self, owner: Owner, amount: int = 1) -> None:
        """Takes an amount.

        Raises:
            QuotaError: There is not so much left; the message says for whom.
        """
        party, device = self._by_party.get(owner.party, 0), self._by_device.get(owner, 0)
        for held, most, whose in (
            (device, self._of_device, "this device"),
            (party, self._most_of_party, "this client"),
            (self.taken, self._in_all, "all devices together"),
        ):
            if held + amount > most:
                raise QuotaError(
                    f"too much at a time: expected at most {most} {self._what} of {whose}, got {held + amount}",
                    _RETRY_SECONDS,
                )
        self.taken += amount
        self._by_party[owner.party] = party + amount
        self._by_device[owner] = device + amount

    def give(self, owner: Owner, amount: int = 1) -> None:
        """Gives an amount back."""
        self.taken -= amount
        self._by_device[owner] -= amount
        if not self._by_device[owner]:
            del self._by_device[owner]
        self._by_party[owner.party] -= amount
        if not self._by_party[owner.party]:
            del self._by_party[owner.party]

    def of_party(self, party: str) -> int:
        """What one party holds now."""
        return self._by_party.get(party, 0)

    @contextlib.contextmanager
    def held(self, owner: Owner, amount: int = 1) -> Iterator[None]:
        """Holds an amount within the block.

        Raises:
            QuotaError: See `take`.
        """
        self.take(owner, amount)
        try:
            yield
        finally:
            self.give(owner, amount)
