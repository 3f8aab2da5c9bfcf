"""Follows a server: whether it is there, its load, and its models."""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING

import grpc

from loadpart_common.errors import AccessError, AuthenticationError, OffloadError, UnavailableError
from loadpart_common.wire.error_codes import error_of
from loadpart_device.edges.backoff import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart.v1 import offload_pb2
    from loadpart_device.edges.availability import Availability
    from loadpart_device.edges.connection import Connection, StatusStream

_CALL_SECONDS = 10.0
_ASK_WITHIN_SECONDS = 2.0
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 0.1, 2.0
_LAST_REFUSED_SECONDS = 30.0  # a credential has to be mended by somebody

log = logging.getLogger(__name__)


class Follower:
    """A thread that reads the status stream of one server, and connects again when it ends."""

    def __init__(
        self,
        connection: Connection,
        availability: Availability,
        *,
        on_status: Callable[[offload_pb2.ServerStatus], None],
        on_models: Callable[[dict[str, offload_pb2.ModelInfo]], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Makes a follower; `start` starts it. The callbacks are called on its thread.

        Args:
            connection: To the server.
            availability: Is told when the server fails.
            on_status: Called with each status.
            on_models: Called with the server's models after each connecting, and when they have changed.
            on_lost: Called when the server is not there any more.
        """
        self._connection = connection
        self._availability = availability
        self._on_status = on_status
        self._on_models = on_models
        self._on_lost = on_lost
        self._backoff = Backoff(_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS)
        self._refused = Backoff(_FIRST_RETRY_SECONDS, _LAST_REFUSED_SECONDS)
        self._closing = threading.Event()
        self._models_version: int | None = None
        self._ask_at: float | None = None
        self._stream: StatusStream | None = None
        self._thread = threading.Thread(target=self._follow, name="loadpart-status", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Ends the stream; `join` waits for the thread, after the connection was closed."""
        self._closing.set()
        if self._stream is not None:
            self._stream.cancel()

    def join(self) -> None:
        """Waits until the thread has ended."""
        if self._thread.is_alive():
            self._thread.join()

    def _follow(self) -> None:
        while not self._closing.is_set():
            try:
                self._connection.renew()
                self._connection.list_models(_CALL_SECONDS)  # waits for a server that is about to start
                self._models_version = None
                self._stream = self._connection.watch_status()
                if self._closing.is_set():  # meanwhile, when there was no stream to cancel
                    self._stream.cancel()
                    return
                for message in self._stream:
                    self._follow_models(message.status.models_version)
                    self._connected()
                    self._on_status(message.status)
                raise UnavailableError("it ended the status stream")
            except (OffloadError, grpc.RpcError, ValueError) as error:  # ValueError: the channel is closed
                if self._closing.is_set():
                    return
                failure = error_of(error) if isinstance(error, grpc.RpcError) else error
                if isinstance(failure, AuthenticationError) and self._connection.renew():
                    self._closing.wait(self._refused.fail())  # the credential was exchanged: inferences go on
                    continue
                log.info("the server at %s is not there: %s", self._connection.endpoint, failure)
                self._on_lost()
                if isinstance(failure, AccessError):
                    self._availability.lost(failure)
                    pause = self._refused.fail()
                else:
                    self._availability.lost(UnavailableError(str(failure)))
                    pause = self._backoff.fail()
            self._closing.wait(pause)

    def _connected(self) -> None:
        self._backoff.reset()
        self._refused.reset()
        self._availability.connected()

    def _follow_models(self, version: int) -> None:
        """Asks for the models when they have changed: after a random delay, because all devices learn of it at once."""
        if version == self._models_version:
            return
        if self._models_version is None:
            self._ask_at = 0.0
        elif self._ask_at is None:
            self._ask_at = time.monotonic() + random.uniform(0, _ASK_WITHIN_SECONDS)
        if self._ask_at is not None and time.monotonic() >= self._ask_at:
            self._on_models(self._connection.list_models(_CALL_SECONDS))
            self._models_version, self._ask_at = version, None
