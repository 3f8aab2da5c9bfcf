"""Where the daemon listens: gRPC servers, and what gRPC itself lets strangers do before any of our code runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from loadpart_common.wire.limits import PIECE_BYTES, channel_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadpart_common.wire.credentials import ServerTls
    from loadpart_common.wire.endpoint import Endpoint

_OPTIONS = [
    *channel_options(PIECE_BYTES),
    ("grpc.max_send_message_length", -1),  # what a network gives may be of any size
    ("grpc.so_reuseport", 0),  # on by default: two daemons would share a port without an error
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    # Strangers: a connection that is not set up soon or carries no calls is closed. One carries a few calls at a time:
    # beyond that gRPC refuses streams before Python sees them, else a flood of them fills the event loop for seconds.
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_concurrent_streams", 32),
    # What gRPC takes of a call before anybody reads it. Left to itself it raises that with the speed of the link, to
    # many megabytes a call. Once a message is asked for it takes all of it, so that only links on which so many bytes
    # are under way at a time (bandwidth by round-trip time) wait for it.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 256 << 10),
]


class Listeners:
    """gRPC servers, each at an address of its own, that start and stop together."""

    def __init__(self) -> None:
        self._servers: list[grpc.aio.Server] = []

    def add(
        self,
        endpoint: Endpoint,
        services: Sequence[grpc.GenericRpcHandler],
        tls: ServerTls | None = None,
        field: str = "listen",
    ) -> Endpoint:
        """Binds an address for services.

        Args:
            endpoint: The address; port 0 for any that is free.
            services: What is served there.
            tls: How it is encrypted; None for in the clear.
            field: The setting that names the address, for the error.

        Returns:
            Where it listens.

        Raises:
            SettingsError: It cannot be bound, or the certificate not be read.
        """
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers(services)
        self._servers.append(server)
        return endpoint.bind(server, tls, field)

    async def start(self) -> None:
        """Starts to serve."""
        await asyncio.gather(*(server.start() for server in self._servers))

    async def stop(self, grace_seconds: float) -> None:
        """Takes no more calls, and ends those that run after a while."""
        await asyncio.gather(*(server.stop(grace_seconds) for server in self._servers))
