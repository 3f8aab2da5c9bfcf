"""All that a device knows of one server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.planning.plan import DEFAULT_CODEC
from loadpart_device.edges.availability import Availability
from loadpart_device.edges.follower import Follower
from loadpart_device.edges.lateness import Lateness
from loadpart_device.edges.link_estimator import LinkEstimator
from loadpart_device.edges.load import LoadFollower
from loadpart_device.edges.plausible import is_status
from loadpart_device.edges.prober import Prober

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart.v1 import offload_pb2
    from loadpart_common.errors import OffloadError
    from loadpart_device.edges.connection import Connection, TailReply
    from loadpart_device.edges.load import ServerLoad
    from loadpart_device.edges.offer import Offer
    from loadpart_device.edges.probe_budget import ProbeBudget


_MESSAGE_MARGIN_BYTES = 2 << 10
"""Of a message besides its tensors."""


class Edge:
    """A server: the connection to it, its load, the link to it, and what it offers.

    Attributes:
        name: Its endpoint, in words.
        connection: The connection.
        link: What is known of the link.
        availability: Whether it may be asked.
        lateness: How much later than predicted its answers come.
        offer: Its tails of the device's model; None as long as they are unknown, or when it has other files.
        is_foreign: Whether it is there and serves another file under the name of the device's model.
        why_unwanted: Why the device does not want its answers; None when it does.
    """

    def __init__(
        self,
        connection: Connection,
        budget: ProbeBudget,
        *,
        on_models: Callable[[Edge, dict[str, offload_pb2.ModelInfo]], None] = lambda _edge, _models: None,
        is_quiet: Callable[[], bool] = lambda: True,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Makes an edge; `start` starts to follow the server and to measure the link.

        Args:
            connection: The connection, which the edge closes.
            budget: Bounds the time that probes take up.
            on_models: Called, on a thread of the edge's, with the server's models when they have changed.
            is_quiet: Whether the device is idle enough for its clock to time the link.
            on_lost: Called, on a thread of the edge's, when the server is not there any more.
        """
        self.name = str(connection.endpoint)
        self.connection = connection
        self.link = LinkEstimator()
        self.availability = Availability()
        self.lateness = Lateness()
        self.offer: Offer | None = None
        self.is_foreign = False
        self.why_unwanted: str | None = None
        self._load = LoadFollower()
        self._is_quiet = is_quiet
        self._on_lost = on_lost
        self._prober = Prober(connection, self.link, budget, is_quiet)
        self._follower = Follower(
            connection,
            self.availability,
            on_status=self._status_received,
            on_models=lambda models: on_models(self, models),
            on_lost=self._lost,
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
        return self.availability.why_not or self._load.why_not or self.why_unwanted

    def why_too_large(self, nbytes: int, batch: int) -> str | None:
        """Why the server would not take a request; None when it would.

        Args:
            nbytes: Bytes of its tensors.
            batch: Items of its batch.
        """
        if nbytes > self.connection.max_message_bytes - _MESSAGE_MARGIN_BYTES:
            return f"the server takes no {nbytes} bytes at a time, but {self.connection.max_message_bytes}"
        if self.offer is not None and batch > self.offer.max_batch:
            return f"the server takes no batch of {batch}, but of {self.offer.max_batch}"
        return None

    def why_not_read(self, codec: str) -> str | None:
        """Why the server could not read what a codec writes; None when it can."""
        if codec == DEFAULT_CODEC or (self.offer is not None and codec in self.offer.codecs):
            return None
        return f"the server does not take the codec {codec!r}"

    def reply_received(self, reply: TailReply) -> None:
        """Takes in what a request of this device's says of the server and of the link."""
        self.availability.succeeded()
        if not reply.is_timed:
            return
        self._load.reply_received(reply.queue_seconds, reply.decode_seconds + reply.tail_seconds)
        if reply.status is not None:
            self._load.status_received(reply.status)
        if self._is_quiet():  # while segments are built, a slow device would take its own slowness for a thin link
            self.link.record(reply.sent_bytes, reply.received_bytes, reply.network_seconds)

    def failed(self, error: OffloadError) -> None:
        """Takes in that a request of this device's failed."""
        self.availability.failed(error)

    def late(self, error: OffloadError) -> None:
        """Takes in that an answer was so late that the device finished before it: link or server have changed."""
        self.availability.failed(error)
        self._prober.measure_anew(alert=True)

    @property
    def is_measured(self) -> bool:
        """Whether the link has been measured since the server was there last."""
        return self._prober.wait_measured(0)

    def network_changed(self) -> None:
        """Forgets the link, and measures it anew at once."""
        self.lateness.forget()
        self._prober.measure_anew()

    def retire(self) -> None:
        """Stops to follow the server and to measure the link; the connection stays, for inferences under way."""
        self._follower.close()
        self._prober.disconnected()

    def close(self) -> None:
        """Ends the connection and the threads."""
        self._follower.close()
        self.connection.close()
        self._prober.close()
        self._follower.join()

    def _status_received(self, status: offload_pb2.ServerStatus) -> None:
        if not is_status(status):
            self.connection.doubts.add("status")
            return
        had_workers = self._load.has_workers
        self._load.status_received(status)
        if self._load.has_workers and not had_workers:
            self.availability.recovered()
        self._prober.connected()

    def _lost(self) -> None:
        self.is_foreign = False
        self._load.forget()
        self._prober.disconnected()
        self._on_lost()
