"""A lower bound for a call on this machine: gRPC and a worker process, without any of the project's code.

An asyncio server copies a request into memory that it shares with its worker process, wakes the worker with one byte,
and answers when a byte comes back. The worker multiplies matrices for the requested seconds. Meanwhile it reads the
requested amount of memory, as a tail reads its weights, so that the answer finds the caches as cold as after a tail.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_METHOD = "/benchmark.Echo/Work"
_SLOT_BYTES = 32 << 20
_ANSWER_BYTES = 4_000  # scores of a thousand classes
_WORK = struct.Struct("!dd")  # seconds, bytes to read
_WEIGHT_BYTES = 640 << 20  # more than any of the networks has
_STEP_BYTES = 256 << 10
_OPTIONS = [("grpc.max_receive_message_length", _SLOT_BYTES), ("grpc.so_reuseport", 0)]


@contextlib.contextmanager
def echo(core: int) -> Iterator[Callable[[int, bytes, float], float]]:
    """Starts server and worker on a core, and stops them at the end of the block.

    Yields a function of the number of bytes that the work reads, a payload, and the seconds of work. The function makes
    a call and returns its duration less the work's, in seconds.
    """
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.echo", str(core)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        with grpc.insecure_channel(f"127.0.0.1:{int(process.stdout.readline())}", _OPTIONS) as channel:
            call: Any = channel.unary_unary(_METHOD)

            def seconds_beyond_work(work_bytes: int, payload: bytes, work_seconds: float) -> float:
                request = _WORK.pack(work_seconds, work_bytes) + payload
                started = time.perf_counter()
                answer = call(request)
                return time.perf_counter() - started - float(_WORK.unpack_from(answer)[0])

            yield seconds_beyond_work
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def main() -> None:
    """Runs the server on the core of the first argument, or the worker if a slot's and a socket's descriptor follow."""
    core, *descriptors = map(int, sys.argv[1:])
    os.sched_setaffinity(0, {core})
    if descriptors:
        slot, server = descriptors
        _work(mmap.mmap(slot, _SLOT_BYTES), socket.socket(fileno=server))
        return
    slot = os.memfd_create("echo-slot")
    os.ftruncate(slot, _SLOT_BYTES)
    ours, theirs = socket.socketpair()
    passed = (slot, theirs.fileno())
    with theirs:
        subprocess.Popen([sys.executable, "-m", "benchmarks.echo", str(core), *map(str, passed)], pass_fds=passed)
    asyncio.run(_serve(mmap.mmap(slot, _SLOT_BYTES), ours))


async def _serve(slot: mmap.mmap, worker: socket.socket) -> None:
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    asyncio.get_running_loop().add_reader(worker, lambda: answers.put_nowait(worker.recv(1)))

    async def work(request: bytes, _: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        slot[: len(request)] = request
        worker.send(b"?")
        await answers.get()
        return slot[:_ANSWER_BYTES]

    server = grpc.aio.server(options=_OPTIONS)
    service, method = _METHOD.strip("/").split("/")
    handlers: dict[str, Any] = {method: grpc.unary_unary_rpc_method_handler(work)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def _work(slot: mmap.mmap, server: socket.socket) -> None:
    """Does the work of each request, until the server has closed the socket."""
    rows, matrix = np.random.default_rng(0).random((2, 1000, 1000), np.float32)
    weights = np.ones(_WEIGHT_BYTES // 4, np.float32)
    step = _STEP_BYTES // 4
    row = 0
    while server.recv(1):
        started = time.perf_counter()
        seconds, nbytes = _WORK.unpack_from(slot)
        read = 0
        while (passed := time.perf_counter() - started) < seconds:
            if read * 4 < nbytes * passed / seconds:
                weights[read : read + step].sum()
                read += step
            else:
                rows[row] = np.tanh(rows[row] @ matrix)
                row = (row + 1) % len(rows)
        _WORK.pack_into(slot, 0, time.perf_counter() - started, 0.0)
        server.send(b"!")


if __name__ == "__main__":
    main()
