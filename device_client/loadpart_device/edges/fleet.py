"""The servers of a device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from loadpart_common.errors import AccessError
    from loadpart_device.edges.edge import Edge


class Fleet:
    """Servers, by name. They share one budget of probing, since they share the device's radio."""

    def __init__(self, edges: Sequence[Edge]) -> None:
        """Makes a fleet of one or more servers."""
        self._edges = {edge.name: edge for edge in edges}

    def __iter__(self) -> Iterator[Edge]:
        return iter(self._edges.values())

    def __getitem__(self, name: str) -> Edge:
        return self._edges[name]

    @property
    def first(self) -> Edge:
        """The server that was named first."""
        return next(iter(self._edges.values()))

    @property
    def refusal(self) -> AccessError | None:
        """Why no server lets this device in; None when one does, as far as is known."""
        refusal: AccessError | None = None
        for edge in self._edges.values():
            refusal = edge.availability.refusal
            if refusal is None:
                return None
        return refusal

    def start(self) -> None:
        """Starts to follow all servers."""
        for edge in self:
            edge.start()

    def wait_measured(self, timeout_seconds: float) -> bool:
        """Waits until the link to some server has been measured; gives whether it was in time."""
        end = time.monotonic() + timeout_seconds
        return any(edge.wait_measured(max(0.0, end - time.monotonic())) for edge in self)

    def network_changed(self) -> None:
        """Forgets the links, and measures them anew at once."""
        for edge in self:
            edge.network_changed()

    def close(self) -> None:
        """Ends all connections."""
        for edge in self:
            edge.close()
