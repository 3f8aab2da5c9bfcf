"""HTTP/2 by hand, as a hostile client speaks it: as slowly, and with as little sense, as it likes."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from loadpart_common.wire.credentials import TOKEN_KEY, TOKEN_SCHEME
from loadpart_common.wire.limits import DEVICE_KEY

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, payload: bytes, stream: int = 0, flags: int = 0) -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def headers(path: str, token: str, device: str) -> bytes:
    """The header block of a call of gRPC, as literals without compression."""
    fields: Iterable[tuple[str, str]] = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        (TOKEN_KEY, TOKEN_SCHEME + token),
        (DEVICE_KEY, device),
    )
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def message(data: bytes) -> bytes:
    """A message of gRPC, not compressed."""
    return b"\0" + struct.pack(">I", len(data)) + data


def connect(target: str, source: str, *, greets: bool = True, window: int | None = None) -> socket.socket:
    """A connection from a source address.

    Args:
        target: Where to, `HOST:PORT`.
        source: Address of this machine that it comes from.
        greets: Whether it begins to speak HTTP/2.
        window: Bytes that the server may send on a stream; the default of the protocol when None.
    """
    host, _, port = target.rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout=20, source_address=(source, 0))
    if greets:
        settings = b"" if window is None else struct.pack(">HI", 4, window)
        connection.sendall(PREFACE + frame(SETTINGS, settings))
    return connection


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, encoded = len(data) - 127, bytearray([127])
    while rest > 127:
        encoded.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*encoded, rest]) + data
