"""All that a device knows of one server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_device.edges.availability import Availability
from loadpart_device.edges.follower import Follower
from loadpart_device.edges.link_estimator import LinkEstimator
from loadpart_device.edges.load import LoadFollower
from loadpart_device.edges.prober import Prober

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart.v1 import offload_pb2
    from loadpart_common.errors import OffloadError
    from loadpart_device.edges.connection import Connection, TailReply
    from loadpart_device.edges.load import ServerLoad
    from loadpart_device.edges.offer import Offer
    from loadpart_device.edges.probe_budget import ProbeBudget


class Edge:
    """A server: the connection to it, its load, the link to it, and what it offers.

    Attributes:
        name: Its endpoint, in words.
        connection: The connection.
        link: What is known of the link.
        availability: Whether it may be asked.
        offer: Its tails of the device's model; None as long as they are unknown, or when it has other files.
    """

    def __init__(
        self,
        connection: Connection,
        budget: ProbeBudget,
        *,
        on_models: Callable[[Edge, dict[str, offload_pb2.ModelInfo]], None] = lambda _edge, _models: None,
        is_quiet: Callable[[], bool] = lambda: True,
    ) -> None:
        """Makes an edge; `start` starts to follow the server and to measure the link.

        Args:
            connection: The connection, which the edge closes.
            budget: Bounds the time that probes take up.
            on_models: Called, on a thread of the edge's, with the server's models when they have changed.
            is_quiet: Whether the device is idle enough for its clock to time the link.
        """
        self.name = str(connection.endpoint)
        self.connection = connection
        self.link = LinkEstimator()
        self.availability = Availability()
        self.offer: Offer | None = None
        self._load = LoadFollower()
        self._is_quiet = is_quiet
        self._prober = Prober(connection, self.link, budget, is_quiet)
        self._follower = Follower(
            connection,
            self.availability,
            on_status=self._status_received,
            on_models=lambda models: on_models(self, models),
            on_lost=self._prober.disconnected,
        )

    def start(self) -> None:
        """Starts to follow the server, and to measure the link."""
        self._follower.start()
        self._prober.start()

    @property
    def load(self) -> ServerLoad | None:
        """The server's load as it is expected to be now; None when it is unknown."""
        return self._load.now()

    def unavailable(self) -> str | None:
        """Why the server should not be asked now; None when it may be."""
        return self.availability.why_not or ("the server is shutting down" if self._load.draining else None)

    def reply_received(self, reply: TailReply) -> None:
        """Takes in what a request of this device's says of the server and of the link."""
        self._load.reply_received(reply.queue_seconds, reply.tail_seconds)
        self._load.status_received(reply.status)
        self.availability.succeeded()
        if self._is_quiet():  # while segments are built, a slow device would take its own slowness for a thin link
            self.link.record(reply.sent_bytes, reply.received_bytes, reply.network_seconds)

    def failed(self, error: OffloadError) -> None:
        """Takes in that a request of this device's failed."""
        self.availability.failed(error)

    def wait_measured(self, timeout_seconds: float) -> bool:
        """Waits until the link has been measured; gives whether it was in time."""
        return self._prober.wait_measured(timeout_seconds)

    def network_changed(self) -> None:
        """Forgets the link, and measures it anew at once."""
        self._prober.measure_anew()

    def close(self) -> None:
        """Ends the connection and the threads."""
        self._follower.close()
        self.connection.close()
        self._prober.close()
        self._follower.join()

    def _status_received(self, status: offload_pb2.ServerStatus) -> None:
        self._load.status_received(status)
        self.availability.succeeded()
        self._prober.connected()
