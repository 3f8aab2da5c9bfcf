"""Bounds, settings of gRPC and names of metadata that both sides share."""

from __future__ import annotations

DEFAULT_MAX_MESSAGE_BYTES = 256 << 20
"""Largest request or response that either side accepts; the largest tensor at a cut of the seven networks has 13 MB."""

PIECE_BYTES = 1 << 20
"""Most bytes of a message to the server; larger requests come in pieces."""

LARGEST_PROBE_BYTES = 1 << 20
"""Most bytes that a probe carries, either way."""

BACKLOG_WINDOW_SECONDS = 0.3
"""Window of the mean backlog in a status: it spans several jobs, and forgets a load soon after its end."""

DEVICE_KEY = "loadpart-device"
"""Metadata of a call with what the device calls itself; see `protos/`."""

OWN_CONNECTION = ("grpc.use_local_subchannel_pool", 1)
"""Setting of a channel: clients of one process would share a connection, and the calls that a server takes from one."""

_MESSAGE_OVERHEAD_BYTES = 64 << 10


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Settings of a channel or a server."""
    limit = max_message_bytes + _MESSAGE_OVERHEAD_BYTES  # the limit is for tensors; names and shapes are extra
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        # Retries would buffer each request, but tensors exceed the buffer; the SDK falls back to computing locally.
        ("grpc.enable_retries", 0),
    ]
