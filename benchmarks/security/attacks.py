"""What a hostile device does beside the honest ones, in a process of its own.

    python -m benchmarks.security.attacks TARGET STORE

Reads lines of JSON: an attack's name, a token and a source address begin it, an empty line ends it. Says "up" when it
is under way and "down" when all that it held is gone, with what the server answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

from benchmarks.security import http2
from benchmarks.security.honest import MODEL
from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS
from loadpart_common.protobuf_fields import field_prefix
from loadpart_common.store.model_store import ModelStore, StoredModel
from loadpart_common.wire.credentials import TOKEN_KEY, TOKEN_SCHEME
from loadpart_common.wire.framing import tensor_pieces
from loadpart_common.wire.limits import DEVICE_KEY, LARGEST_PROBE_BYTES, OWN_CONNECTION, PIECE_BYTES
from loadpart_common.wire.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
    from socket import socket

LARGE_BYTES = 200 << 20
PARALLEL, STREAMS, CONNECTIONS, CALLERS, DOWNLOADS, DRIBBLERS = 200, 2_000, 5_000, 64, 100, 200
STREAMS_OF_A_CONNECTION = 25

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),
    OWN_CONNECTION,
]
_PIECE = field_prefix(offload_pb2.InferRequest.PIECE_FIELD_NUMBER, PIECE_BYTES - 16) + bytes(PIECE_BYTES - 16)
_PIECE_BYTES = PIECE_BYTES - 16


class Attacker:
    """One attack under way.

    Attributes:
        statuses: What the server answered.
    """

    def __init__(self, target: str, stored: StoredModel, token: str, source: str) -> None:
        self.statuses: Counter[str] = Counter()
        self._target, self._source, self._token = target, source, token
        self._stored = stored
        self._channels: list[grpc.aio.Channel] = []
        self._sockets: list[socket] = []
        self._tasks: list[asyncio.Task[None]] = []

    # What the attacks are made of.

    def _channel(self) -> grpc.aio.Channel:
        self._channels.append(grpc.aio.insecure_channel(self._target, options=_OPTIONS))
        return self._channels[-1]

    def _channels_for(self, calls: int) -> list[grpc.aio.Channel]:
        """Enough connections for so many calls at a time."""
        return [self._channel() for _ in range(-(-calls // STREAMS_OF_A_CONNECTION))]

    def _metadata(self, device: str = "attacker", token: str | None = None) -> tuple[tuple[str, str], ...]:
        return ((DEVICE_KEY, device), (TOKEN_KEY, TOKEN_SCHEME + (token or self._token)))

    def _repeat(self, once: Callable[[], Awaitable[object]], pause: float = 0.0) -> None:
        """Does something again and again, whatever comes of it."""

        async def run() -> None:
            while True:
                try:
                    await once()
                    self.statuses["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    self.statuses[error.code().name] += 1
                await asyncio.sleep(pause)

        self._tasks.append(asyncio.create_task(run()))

    def _head(self, total: int = 0, cut: int = 0) -> offload_pb2.InferRequest:
        digest = self._stored.manifest.digest
        return offload_pb2.InferRequest(model=MODEL, digest=digest, cut=cut, codec="raw", total_bytes=total)

    # The attacks.

    async def batches(self) -> None:
        """One device that sends ever-new batch sizes, each at another cut, four at a time."""
        channel, layers = self._channel(), self._stored.graph.layer_count
        new = ((cut, size) for size in itertools.count(2) for cut in range(layers - 1, -1, -7))

        async def once() -> None:
            cut, size = next(new)
            codec = CODECS["raw"]
            arrays = [np.zeros(spec.concrete(size % 14 + 2), spec.dtype) for spec in self._stored.graph.cut(cut).specs]
            tensors = b"".join(tensor_pieces(offload_pb2.InferRequest, arrays, codec))
            head = self._head(total=len(tensors), cut=cut).SerializeToString()
            parts = (tensors[start : start + _PIECE_BYTES] for start in range(0, len(tensors), _PIECE_BYTES))
            number = offload_pb2.InferRequest.PIECE_FIELD_NUMBER
            messages = [head, *(field_prefix(number, len(part)) + part for part in parts)]
            infer: Any = channel.stream_unary(METHODS["Infer"].path)
            await infer(iter(messages), metadata=self._metadata())

        for _ in range(4):
            self._repeat(once)

    async def large_in_pieces(self) -> None:
        """200 requests of 200 MB at a time, each of a device of its own, in pieces as the protocol wants."""
        count = LARGE_BYTES // _PIECE_BYTES
        head = self._head(total=count * _PIECE_BYTES).SerializeToString()
        self._large(lambda: itertools.chain([head], itertools.repeat(_PIECE, count)), is_one_device=False)

    async def large_of_one_device(self) -> None:
        """The same, all of one device."""
        count = LARGE_BYTES // _PIECE_BYTES
        head = self._head(total=count * _PIECE_BYTES).SerializeToString()
        self._large(lambda: itertools.chain([head], itertools.repeat(_PIECE, count)), is_one_device=True)

    async def large_in_one_message(self) -> None:
        """40 requests of 200 MB at a time, each in one message, of which gRPC takes all before it refuses it."""
        message = b"\x22" + bytes(LARGE_BYTES)  # the attacker's gRPC copies it for each request
        self._large(lambda: iter([message]), is_one_device=False, parallel=40)

    async def large_begun(self) -> None:
        """200 connections that begin messages of 200 MB, one after another, as many as the server lets them."""

        def begin() -> None:
            for _ in range(PARALLEL):
                self._sockets.append(http2.connect(self._target, self._source))
                self._sockets[-1].setblocking(False)

        await asyncio.to_thread(begin)
        start = http2.message(b"\x22")[:1] + LARGE_BYTES.to_bytes(4, "big") + bytes(8 << 10)

        async def send() -> None:
            for stream in itertools.count(1, 2):
                for number, connection in enumerate(self._sockets):
                    block = http2.headers(METHODS["Infer"].path, self._token, f"attacker-{number}")
                    with contextlib.suppress(OSError):
                        connection.send(
                            http2.frame(http2.HEADERS, block, stream, http2.END_HEADERS)
                            + http2.frame(http2.DATA, start, stream)
                        )
                        self.statuses["begun"] += 1
                        while connection.recv(1 << 16):
                            pass
                    await asyncio.sleep(0)

        self._tasks.append(asyncio.create_task(send()))

    async def large_lies(self) -> None:
        """200 requests at a time that claim 200 MB and then send one piece, and no more."""
        head = self._head(total=LARGE_BYTES).SerializeToString()
        self._large(lambda: iter([head, _PIECE]), is_one_device=False, holds=True)

    def _large(
        self,
        messages: Callable[[], Iterable[bytes]],
        *,
        is_one_device: bool,
        holds: bool = False,
        parallel: int = PARALLEL,
    ) -> None:
        def repeat(channel: grpc.aio.Channel, device: str) -> None:
            async def stream() -> AsyncIterator[bytes]:
                for each in messages():
                    yield each
                if holds:
                    await asyncio.sleep(3600)

            async def once() -> None:
                infer: Any = channel.stream_unary(METHODS["Infer"].path)
                await infer(stream(), metadata=self._metadata(device))

            self._repeat(once, 0.1)

        for number in range(parallel):
            if number % 20 == 0:
                channel = self._channel()
            repeat(channel, "attacker" if is_one_device else f"attacker-{number}")

    async def streams_of_one_device(self) -> None:
        """2,000 status streams of one device."""
        self._streams(lambda _: "attacker")

    async def streams_of_many_devices(self) -> None:
        """2,000 status streams, each of a device of its own."""
        self._streams(lambda number: f"attacker-{number}")

    def _streams(self, device: Callable[[int], str]) -> None:
        def repeat(channel: grpc.aio.Channel, number: int) -> None:
            async def once() -> None:
                watch: Any = channel.unary_stream(METHODS["WatchStatus"].path)
                async for _ in watch(b"", metadata=self._metadata(device(number))):
                    self.statuses["status"] += 1

            self._repeat(once, 1.0)

        channels = self._channels_for(STREAMS)
        for number in range(STREAMS):
            repeat(channels[number % len(channels)], number)

    async def idle_connections(self) -> None:
        """5,000 connections that say nothing."""
        await asyncio.to_thread(self._connect, CONNECTIONS, greets=False)

    async def idle_http2(self) -> None:
        """5,000 connections of HTTP/2 without a call."""
        await asyncio.to_thread(self._connect, CONNECTIONS, greets=True)

    def _connect(self, number: int, *, greets: bool) -> None:
        for _ in range(number):
            try:
                self._sockets.append(http2.connect(self._target, self._source, greets=greets))
                self.statuses["connected"] += 1
            except OSError:
                self.statuses["not connected"] += 1

    async def unread_downloads(self) -> None:
        """100 downloads of devices of their own, of which nothing is read."""

        def begin() -> None:
            for number in range(DOWNLOADS):
                connection = http2.connect(self._target, self._source, window=1 << 20)
                self._sockets.append(connection)
                path = METHODS["GetModel"].path
                block = http2.headers(path, self._token, f"attacker-{number}")
                request = http2.message(offload_pb2.GetModelRequest(model=MODEL).SerializeToString())
                connection.sendall(
                    http2.frame(http2.HEADERS, block, 1, http2.END_HEADERS)
                    + http2.frame(http2.DATA, request, 1, http2.END_STREAM)
                )

        await asyncio.to_thread(begin)

    async def slow_frames(self) -> None:
        """200 connections, each with a request of which a byte comes at a time."""

        def begin() -> None:
            for number in range(DRIBBLERS):
                connection = http2.connect(self._target, self._source)
                connection.sendall(
                    http2.frame(
                        http2.HEADERS,
                        http2.headers(METHODS["Infer"].path, self._token, f"attacker-{number}"),
                        1,
                        http2.END_HEADERS,
                    )
                )
                connection.setblocking(False)
                self._sockets.append(connection)

        await asyncio.to_thread(begin)
        body = http2.message(bytes(1 << 16))

        async def dribble() -> None:
            for byte in itertools.cycle(body):
                for connection in self._sockets:
                    with contextlib.suppress(OSError):
                        connection.send(http2.frame(http2.DATA, bytes([byte]), 1))
                await asyncio.sleep(0.05)

        self._tasks.append(asyncio.create_task(dribble()))

    async def probes(self) -> None:
        """64 callers that ask for the largest answer of a probe all the time."""
        data = offload_pb2.ProbeRequest(response_bytes=LARGEST_PROBE_BYTES).SerializeToString()
        self._callers("Probe", data)

    async def listings(self) -> None:
        """64 callers that ask for the list of models all the time."""
        self._callers("ListModels", b"")

    async def wrong_tokens(self) -> None:
        """64 callers with a wrong token."""
        self._token = "wrong"
        self._callers("Infer", bytes(1000))

    async def garbage(self) -> None:
        """64 callers that send a megabyte of what is no message."""
        self._callers("Infer", b"\x22\x00" * (PIECE_BYTES // 2))

    def _callers(self, method: str, data: bytes) -> None:
        def repeat(channel: grpc.aio.Channel, number: int) -> None:
            call: Any = channel.unary_unary(METHODS[method].path)
            self._repeat(lambda: call(data, metadata=self._metadata(f"attacker-{number // 2}")))

        channels = [self._channel() for _ in range(8)]
        for number in range(CALLERS):
            repeat(channels[number % len(channels)], number)

    async def close(self) -> None:
        """Lets go of everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(channel.close(None) for channel in self._channels))
        for connection in self._sockets:
            connection.close()


ATTACKS: dict[str, Callable[[Attacker], Coroutine[Any, Any, None]]] = {
    function.__name__.replace("_", " "): function
    for function in (
        Attacker.batches,
        Attacker.large_in_pieces,
        Attacker.large_of_one_device,
        Attacker.large_in_one_message,
        Attacker.large_begun,
        Attacker.large_lies,
        Attacker.streams_of_one_device,
        Attacker.streams_of_many_devices,
        Attacker.idle_connections,
        Attacker.idle_http2,
        Attacker.unread_downloads,
        Attacker.slow_frames,
        Attacker.probes,
        Attacker.listings,
        Attacker.wrong_tokens,
        Attacker.garbage,
    )
}


async def main(target: str, store: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stored = ModelStore(store).open(MODEL)
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, token, source = json.loads(line)
        attacker = Attacker(target, stored, token, source)
        await ATTACKS[name](attacker)
        print("up", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await attacker.close()
        print(json.dumps(dict(attacker.statuses.most_common())), flush=True)


if __name__ == "__main__":
    os.nice(19)  # a hostile device is another machine: here it must take no time from the honest ones
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
