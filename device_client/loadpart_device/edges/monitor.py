"""Follows the server in the background: whether it is there, its models, its load, and the link to it."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from typing import TYPE_CHECKING

import grpc

from loadpart_common.errors import OffloadError, UnavailableError, from_rpc_error
from loadpart_device.edges.link import MEASURABLE_BYTES, LinkEstimator
from loadpart_device.edges.load import LoadFollower

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart.v1 import offload_pb2
    from loadpart_device.deciding.policies import ServerLoad
    from loadpart_device.edges.connection import Server, StatusStream, TailReply

_FIRST_RETRY_SECONDS = 0.25
_LAST_RETRY_SECONDS = 8.0
_CALL_SECONDS = 10.0
_ASK_WITHIN_SECONDS = 2.0
_PROBE_PERIOD_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 60.0  # a link that is hardly one is looked at once a minute all the same
_DOUBT_SECONDS = 2.0  # until a reading that surprises is repeated
_PROBE_SHARE = 0.008  # of the link's time that probes may take; with all else on an idle link it stays below 1 %
_CREDIT_SECONDS = 60.0  # of probing that was not needed, and may be made up for when the link changes
_PROBE_BYTES = 2 * MEASURABLE_BYTES
_LARGEST_PROBE_BYTES = 1 << 20
_THIN_SECONDS_PER_BYTE = _PROBE_PERIOD_SECONDS * _PROBE_SHARE / (2 * _PROBE_BYTES)
_CHECK_BYTES, _CHECK_SECONDS = 8 << 10, 0.02  # beyond what goes through at once: enough for a clock
_PROBE_SECONDS, _LEAST_PROBE_SECONDS = 0.025, 1e-4  # of a probe that is long enough for a clock, and of any
_SURE_SECONDS = 0.1
_QUIET_SECONDS = 0.02  # before a small request: one in a row of them is quicker than an inference's ever is
_TIMES_A_DOWNLINK = 6  # after which the downlink is probed too: answers are small
_BUSY_SECONDS = 0.05

log = logging.getLogger(__name__)


class Monitor:
    """Two threads: one reads the status stream, the other probes the link while nothing else measures it.

    A server that fails is left alone for a while, each time longer, and tried again.

    Attributes:
        link: What is known of the link.
    """

    def __init__(
        self,
        server: Server,
        on_models: Callable[[dict[str, offload_pb2.ModelInfo]], None],
        is_quiet: Callable[[], bool],
    ) -> None:
        """Makes a monitor; `start` starts it.

        Args:
            server: The server to follow.
            on_models: Called, on a thread of the monitor's, with the server's models after each connecting.
            is_quiet: Whether the device is idle enough for its clock to time the link.
        """
        self._server = server
        self._on_models = on_models
        self._is_quiet = is_quiet
        self.link = LinkEstimator()
        self._closing = threading.Event()
        self._measured = threading.Event()
        self._connected = threading.Event()
        self._probe_now = threading.Event()
        self._load = LoadFollower()
        self._models_version: int | None = None
        self._ask_at: float | None = None
        self._measured_times = 0
        self._paid_until = time.monotonic()
        self._why_not = ""
        self._retry_at = 0.0
        self._failures = 0
        self._stream: StatusStream | None = None
        self._threads = [
            threading.Thread(target=self._follow, name="loadpart-status", daemon=True),
            threading.Thread(target=self._probe, name="loadpart-probe", daemon=True),
        ]

    def start(self) -> None:
        """Starts to follow."""
        for thread in self._threads:
            thread.start()

    def unavailable(self) -> str | None:
        """Why the server should not be asked now; None when it may be."""
        if self._retry_at and (left := self._retry_at - time.monotonic()) > 0:
            return f"{self._why_not}; it is tried again in {left:.1f} s"
        if self._load.draining:
            return "the server is shutting down"
        return None

    @property
    def load(self) -> ServerLoad | None:
        """The server's load as it is expected to be now; None when it is unknown."""
        return self._load.now()

    def heard(self, status: offload_pb2.ServerStatus) -> None:
        """Takes in a status; the server is there."""
        self._load.heard(status)
        self._failures, self._retry_at = 0, 0.0

    def served(self, reply: TailReply) -> None:
        """Takes in what a request of this device's was to the server and to the link."""
        self._load.served(reply.queue_seconds, reply.tail_seconds)
        self.heard(reply.status)
        if self._is_quiet():  # what a slow device takes to build segments would pass for a thin link
            self.link.record(reply.sent_bytes, reply.received_bytes, reply.network_seconds)

    def failed(self, error: OffloadError) -> None:
        """Takes in a failure: the server is left alone for a while, twice as long as the last time."""
        delay = min(_FIRST_RETRY_SECONDS * 2**self._failures, _LAST_RETRY_SECONDS)
        self._failures += 1
        self._why_not = f"the server failed: {error}"
        self._retry_at = time.monotonic() + delay

    def wait_measured(self, timeout_seconds: float) -> bool:
        """Waits until the link has been measured; whether it was in time."""
        return self._measured.wait(timeout_seconds)

    def network_changed(self) -> None:
        """Forgets the link, and measures it anew at once."""
        self.link.forget()
        self._measured.clear()
        self._probe_now.set()

    def close(self) -> None:
        """Ends the threads."""
        self._closing.set()
        self._probe_now.set()
        if self._stream is not None:
            self._stream.cancel()
        self._server.close()
        self._connected.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _follow(self) -> None:
        while not self._closing.is_set():
            try:
                self._server.list_models(_CALL_SECONDS)  # waits for a server that is about to start
                self._models_version = None
                self._stream = self._server.watch_status()
                for message in self._stream:
                    self._follow_models(message.status.models_version)
                    self.heard(message.status)
                    self._connected.set()
                raise UnavailableError("it ended the status stream")
            except (OffloadError, grpc.RpcError, ValueError) as error:  # ValueError: the channel is closed
                if self._closing.is_set():
                    return
                failure = from_rpc_error(error) if isinstance(error, grpc.RpcError) else error
                log.info("the server at %s is not there: %s", self._server.target, failure)
                self._connected.clear()
                self.link.forget()
                self._measured.clear()
                self.failed(UnavailableError(str(failure)))
            self._closing.wait(max(0.0, self._retry_at - time.monotonic()))

    def _follow_models(self, version: int) -> None:
        """Asks for the models when they have changed; a moment later, drawn by chance, as all devices hear of it."""
        if version == self._models_version:
            return
        if self._models_version is None:
            self._ask_at = 0.0
        elif self._ask_at is None:
            self._ask_at = time.monotonic() + random.uniform(0, _ASK_WITHIN_SECONDS)
        if self._ask_at is not None and time.monotonic() >= self._ask_at:
            self._on_models(self._server.list_models(_CALL_SECONDS))
            self._models_version, self._ask_at = version, None

    def _probe(self) -> None:
        while True:
            self._connected.wait()
            self._probe_now.clear()
            if self._closing.is_set():
                return
            pause = _PROBE_PERIOD_SECONDS
            if not self._is_quiet():
                pause = _BUSY_SECONDS
            elif self.link.age_seconds >= _PROBE_PERIOD_SECONDS or self.link.surprise:
                try:
                    pause = min(max(pause, self._pay(self._measure())), _LONGEST_PAUSE_SECONDS)
                    if self.link.surprise and pause < _LONGEST_PAUSE_SECONDS:
                        pause = _DOUBT_SECONDS
                    if self.link.reading is not None:  # it may have been forgotten meanwhile
                        self._measured.set()
                except (OffloadError, ValueError) as error:
                    log.debug("a probe failed: %s", error)
                    pause = _FIRST_RETRY_SECONDS
            self._probe_now.wait(pause)

    def _pay(self, taken_seconds: float) -> float:
        """Seconds until as much of the link's time may be taken up again, on average over a minute and more."""
        now = time.monotonic()
        self._paid_until = max(self._paid_until, now - _CREDIT_SECONDS) + taken_seconds / _PROBE_SHARE
        return self._paid_until - now

    def _measure(self) -> float:
        """Times small requests, and two or three large ones in a row, as large as the link is quick.

        On a thin link, where these would have to be rare, the first one is hardly larger than what goes through at
        once, and the others follow only if it tells that the link is not what it was.

        Returns:
            Seconds that the link, or the busier direction of it, was taken up.
        """
        started = time.monotonic()
        before = self.link.reading
        for _ in range(3 if before is None else 1):
            self._closing.wait(_QUIET_SECONDS)
            self.link.record(0, 0, self._server.probe(b"", _CALL_SECONDS))
        sent = _PROBE_BYTES
        if is_thin := before is not None and before.seconds_per_byte > _THIN_SECONDS_PER_BYTE:
            sent = int(before.free_bytes + max(_CHECK_BYTES, _CHECK_SECONDS / before.seconds_per_byte))
        first = (sent, self._probe_up(sent))
        if not is_thin or self.link.surprise or not self.link.check(*first):
            sent += self._follow_up(first, self._probe_up, down=False)
            if self.link.surprise < 0:  # nothing makes a link look quicker than it is; if slower, it may be in use
                sent += self._follow_up(first, self._probe_up, down=False)
        reading = self.link.reading
        taken = sent * reading.seconds_per_byte if reading else time.monotonic() - started
        if self._measured_times % _TIMES_A_DOWNLINK == 0:
            self._follow_up((_PROBE_BYTES, self._probe_down(_PROBE_BYTES)), self._probe_down, down=True)
        self._measured_times += 1
        return taken

    def _follow_up(self, first: tuple[int, float], probe: Callable[[int], float], *, down: bool) -> int:
        """Probes right after another probe, a second time where the link is quick; gives the bytes that it took.

        Args:
            first: That probe, bytes and seconds: it has emptied the bucket.
            probe: Carries so many bytes; gives the seconds.
            down: Whether the downlink is probed.
        """
        scale = max(_PROBE_SECONDS / max(first[1], _LEAST_PROBE_SECONDS), 1.0)
        size = sent = int(min(first[0] * scale, _LARGEST_PROBE_BYTES))
        seconds = probe(size)
        if seconds < _SURE_SECONDS:  # a delay of some milliseconds would show, and delays only ever add
            seconds, sent = min(seconds, probe(size)), 2 * size
        self.link.record_pair(first, (size, seconds), down=down)
        return sent

    def _probe_up(self, nbytes: int) -> float:
        return self._server.probe(os.urandom(nbytes), _CALL_SECONDS)

    def _probe_down(self, nbytes: int) -> float:
        return self._server.probe(b"", _CALL_SECONDS, response_bytes=nbytes)
