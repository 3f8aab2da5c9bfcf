"""What the daemon and its workers say to each other, and how it goes over a socket.

A message is pickled; the arrays in it travel beside the pickle as they are, so that they are copied once on each side.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    import socket
    from pathlib import Path

    from loadpart_common.tensors import Array

_PREFIX = struct.Struct("!II")  # bytes of the table, number of buffers that follow it
_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Prepare:
    """Build the tail of a cut and time it idle."""

    model: str
    path: Path
    cut: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A tail is built. `seconds` is its idle time for one item, `resident_bytes` the worker's memory."""

    seconds: float
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Run:
    """Run the tail of a cut."""

    model: str
    path: Path
    cut: int
    batch: int
    arrays: list[Array] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Done:
    """The outputs of a tail; how long it took, and how long building it took before."""

    arrays: list[Array] = field(repr=False)
    seconds: float
    build_seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """What a worker could not do. `error` is one of `loadpart_common.errors` and is raised where the job waits."""

    error: Exception


def pack(message: object) -> list[bytes | memoryview]:
    """A message as pieces to be sent one after another."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    pieces = [memoryview(body), *(buffer.raw() for buffer in buffers)]
    table = b"".join(_LENGTH.pack(len(piece)) for piece in pieces)
    return [_PREFIX.pack(len(table), len(pieces)) + table, *pieces]


def _unpack(pieces: list[bytearray]) -> Any:
    return pickle.loads(pieces[0], buffers=pieces[1:])


def send(connection: socket.socket, message: object) -> None:
    """Sends a message; blocks."""
    for piece in pack(message):
        connection.sendall(piece)


def receive(connection: socket.socket) -> Any:
    """Receives a message; blocks.

    Raises:
        EOFError: The other side is gone.
    """
    table_bytes, count = _PREFIX.unpack(_receive_exactly(connection, _PREFIX.size))
    lengths = _LENGTH.iter_unpack(_receive_exactly(connection, table_bytes))
    pieces = [_receive_exactly(connection, length) for (length,) in lengths]
    assert len(pieces) == count
    return _unpack(pieces)


def _receive_exactly(connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        received = connection.recv_into(view)
        if received == 0:
            raise EOFError
        view = view[received:]
    return data


async def send_async(loop: asyncio.AbstractEventLoop, connection: socket.socket, message: object) -> None:
    """Sends a message without blocking the loop."""
    for piece in pack(message):
        await loop.sock_sendall(connection, piece)


async def receive_async(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> Any:
    """Receives a message without blocking the loop.

    Raises:
        EOFError: The other side is gone.
    """
    table_bytes, count = _PREFIX.unpack(await _receive_exactly_async(loop, connection, _PREFIX.size))
    lengths = _LENGTH.iter_unpack(await _receive_exactly_async(loop, connection, table_bytes))
    pieces = [await _receive_exactly_async(loop, connection, length) for (length,) in lengths]
    assert len(pieces) == count
    return _unpack(pieces)


async def _receive_exactly_async(loop: asyncio.AbstractEventLoop, connection: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while view:
        received = await loop.sock_recv_into(connection, view)
        if received == 0:
            raise EOFError
        view = view[received:]
    return data
