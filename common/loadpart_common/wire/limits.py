"""Bounds and settings of gRPC that both sides share."""

from __future__ import annotations

DEFAULT_MAX_MESSAGE_BYTES = 256 << 20
"""Largest message that either side takes; the largest tensor of the six networks at a cut has 13 MB."""

BACKLOG_WINDOW_SECONDS = 0.3
"""Window of the mean backlog in a status: some jobs long, and soon over when a load ends."""

_MESSAGE_OVERHEAD_BYTES = 64 << 10


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Settings of a channel or a server."""
    limit = max_message_bytes + _MESSAGE_OVERHEAD_BYTES  # the bound is on tensors; names and shapes come on top
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        # Retries would buffer what is sent; a tensor is larger than the buffer, and the SDK has its own fall-back.
        ("grpc.enable_retries", 0),
    ]
