"""The servers of a device: those that it was told of, and those behind names, which come and go."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING

from loadpart_common.errors import OffloadError
from loadpart_common.wire.limits import DEFAULT_MAX_MESSAGE_BYTES
from loadpart_device.edges.connection import Connection
from loadpart_device.edges.edge import Edge
from loadpart_device.edges.names import is_name, resolve
from loadpart_device.edges.probe_budget import ProbeBudget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from loadpart.v1 import offload_pb2
    from loadpart_common.errors import AccessError
    from loadpart_common.wire.endpoint import Endpoint

_PERIOD_SECONDS, _SOONEST_SECONDS = 10.0, 1.0  # between two looks at the names: usually, and after a server was lost
_RETIRED_SECONDS = 60.0
"""How long the connection to a server that has left stays open: an inference may still be there."""

_OTHERS_SECONDS = 2.0  # that are waited for the other servers once one has been measured
_LOOK_SECONDS = 0.01

log = logging.getLogger(__name__)


class Fleet:
    """The servers, in the order in which they were named. Thread-safe.

    They share one budget of probing, since they share the device's radio. A server that joins is measured before it is
    used, and one that leaves is not chosen any more; inferences that are there still end.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        timeout_seconds: float,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        on_models: Callable[[Edge, dict[str, offload_pb2.ModelInfo]], None] = lambda _edge, _models: None,
        is_quiet: Callable[[], bool] = lambda: True,
        resolve: Callable[[Endpoint], list[Endpoint]] = resolve,
        period_seconds: float = _PERIOD_SECONDS,
    ) -> None:
        """Makes a fleet; `start` starts to follow the servers.

        Args:
            endpoints: Servers, and names of servers; at least one.
            timeout_seconds: How long to wait for names to be resolved; after that, it goes on in the background.
            max_message_bytes: Largest message that is sent or accepted.
            on_models: Called, on a thread of an edge's, with the server's models when they have changed.
            is_quiet: Whether the device is idle enough for its clock to time links.
            resolve: Gives the endpoints behind a name, or raises `OSError`.
            period_seconds: How often names are looked at.

        Raises:
            SettingsError: A file of the credentials cannot be read, or a token would cross a network in the clear.
        """
        self._endpoints = tuple(endpoints)
        self._max_message_bytes = max_message_bytes
        self._on_models = on_models
        self._is_quiet = is_quiet
        self._budget = ProbeBudget()
        self._resolve = resolve
        self._period_seconds = period_seconds
        self._lock = threading.Lock()
        self._behind: dict[Endpoint, list[Endpoint]] = {}  # by name
        self._edges: dict[str, Edge] = {}  # replaced as a whole
        self._retired: list[tuple[Edge, float]] = []
        self._on_change: Callable[[], None] | None = None
        self._closing = threading.Event()
        self._look = threading.Event()
        self._thread = threading.Thread(target=self._follow_names, name="loadpart-names", daemon=True)
        self._names = [endpoint for endpoint in endpoints if is_name(endpoint)]
        if self._names:
            first = threading.Thread(target=self._look_up, name="loadpart-resolve", daemon=True)
            first.start()
            first.join(timeout_seconds)
            if len(self._behind) < len(self._names):
                self._look.set()
        self._update()

    def __iter__(self) -> Iterator[Edge]:
        return iter(self._edges.values())

    def __getitem__(self, name: str) -> Edge:
        """A server by its name, also one that left a moment ago.

        Raises:
            KeyError: There is none of that name.
        """
        edge = self._edges.get(name)
        if edge is not None:
            return edge
        with self._lock:
            return {edge.name: edge for edge, _ in self._retired}[name]

    @property
    def first(self) -> Edge | None:
        """The server that was named first; None while no name leads to one."""
        return next(iter(self._edges.values()), None)

    @property
    def refusal(self) -> AccessError | None:
        """Why no server lets this device in; None when one does, as far as is known."""
        refusals = [edge.availability.refusal for edge in self]
        return refusals[0] if refusals and None not in refusals else None

    @property
    def foreign(self) -> Edge | None:
        """The first server, if all are there and hold other files under the model's name; None when that is not so."""
        return self.first if all(edge.is_foreign for edge in self) else None

    def start(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Starts to follow all servers.

        Args:
            on_change: Called, on a thread of the fleet's, when servers have come or gone.
        """
        with self._lock:
            self._on_change = on_change
            edges = list(self)
        for edge in edges:
            edge.start()
        if self._names:
            self._thread.start()

    def wait_measured(self, timeout_seconds: float) -> bool:
        """Waits until the link to some server has been measured, and a moment for the others that seem to be there.

        Returns:
            Whether one was in time.
        """
        end = time.monotonic() + timeout_seconds
        while not any(edge.is_measured for edge in self):
            if time.monotonic() >= end:
                return False
            time.sleep(_LOOK_SECONDS)
        end = min(end, time.monotonic() + _OTHERS_SECONDS)
        while any(not edge.is_measured and edge.unavailable() is None for edge in self) and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)
        return True

    def network_changed(self) -> None:
        """Forgets the links, and measures them anew at once."""
        self._look.set()
        for edge in self:
            edge.network_changed()

    def close(self) -> None:
        """Ends all connections."""
        with self._lock:  # after which no edge is made
            self._closing.set()
            retired = [edge for edge, _ in self._retired]
        self._look.set()
        for edge in [*self, *retired]:
            edge.close()
        if self._thread.is_alive():
            self._thread.join(_SOONEST_SECONDS)  # no longer: a name that is being resolved cannot be given up

    def _follow_names(self) -> None:
        while True:
            # Not all devices at once: they may have started together.
            self._look.wait(self._period_seconds * random.uniform(0.75, 1.25))
            self._look.clear()
            if self._closing.is_set():
                return
            self._look_up()
            self._update()
            self._close_retired()
            self._closing.wait(min(_SOONEST_SECONDS, self._period_seconds))

    def _look_up(self) -> None:
        """Resolves all names; one that cannot be resolved leads where it did before, for its servers may be well."""
        for name in self._names:
            try:
                self._behind[name] = self._resolve(name)
            except OSError as error:
                log.warning("%s cannot be resolved: %s", name, error)

    def _update(self) -> None:
        """Makes edges of new endpoints, and retires those whose endpoints have gone.

        Raises:
            OffloadError: An edge cannot be made, and the fleet is not started yet.
        """
        wanted = {
            str(endpoint): endpoint
            for named in self._endpoints
            for endpoint in (self._behind.get(named, []) if is_name(named) else [named])
        }
        with self._lock:
            if self._closing.is_set() or wanted.keys() == self._edges.keys():  # name servers change the order
                return
            before, edges, fresh = self._edges, dict[str, Edge](), list[Edge]()
            for name, endpoint in wanted.items():
                edge = before.get(name)
                if edge is None:
                    try:
                        edge = self._make_edge(endpoint)
                    except OffloadError as error:
                        if self._on_change is None:
                            for made in fresh:
                                made.close()
                            raise
                        log.warning("the server at %s is left alone: %s", name, error)
                        continue
                    fresh.append(edge)
                edges[name] = edge
            gone = [edge for name, edge in before.items() if name not in edges]
            self._edges = edges
            self._retired += [(edge, time.monotonic() + _RETIRED_SECONDS) for edge in gone]
            on_change = self._on_change
        for edge in gone:
            log.info("the server at %s has left", edge.name)
            edge.retire()
        if on_change is not None:
            on_change()
            for edge in fresh:
                log.info("the server at %s has joined", edge.name)
                edge.start()

    def _make_edge(self, endpoint: Endpoint) -> Edge:
        return Edge(
            Connection(endpoint, self._max_message_bytes),
            self._budget,
            on_models=self._on_models,
            is_quiet=self._is_quiet,
            on_lost=self._look.set,
        )

    def _close_retired(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [edge for edge, until in self._retired if until <= now]
            self._retired = [(edge, until) for edge, until in self._retired if until > now]
        for edge in due:
            edge.close()
