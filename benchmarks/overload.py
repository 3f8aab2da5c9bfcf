"""Overload: 32 clients with 1, 2, 4 and 8 requests in flight each, a timeout of 1 s; then one sends 10 times more.

The clients use the protocol without the SDK, so that every request goes to the server, and wait for as long as a
refusal says. Capacity is what one client with four requests in flight gets, in the same run, before and after. Clients
have one core, the server has the other.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.daemon import Daemon, conditions, daemon, export_missing
from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS
from loadpart_common.wire.error_codes import RETRY_AFTER_KEY
from loadpart_common.wire.framing import with_tensors
from loadpart_common.wire.limits import DEVICE_KEY, OWN_CONNECTION, channel_options
from loadpart_common.wire.methods import METHODS

MODEL = "squeezenet"
CLIENTS, IN_FLIGHT, GREEDY = 32, (1, 2, 4, 8), 40
TIMEOUT_SECONDS, WARM_UP_SECONDS = 1.0, 2.0
LEAST_THROUGHPUT, MOST_REFUSAL_SECONDS, SHARE_TOLERANCE, MOST_GROWTH = 0.95, 0.02, 0.2, 16e6
_REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


@dataclass
class Client:
    """A client: what came of its requests in seconds, by their kind."""

    served: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    expired: list[float] = field(default_factory=list)
    sent: int = 0


async def slot(client: Client, call: object, request: bytes, name: str, times: tuple[float, float]) -> None:
    """Sends one request after another until the second moment; what is sent before the first one does not count."""
    begin, end = times
    counted, client = client, Client()
    await asyncio.sleep(random.uniform(0.0, WARM_UP_SECONDS / 2))  # all at once would be another load
    while time.monotonic() < end:
        if time.monotonic() >= begin:
            client = counted
        started, pause = time.perf_counter(), 0.0
        client.sent += 1
        try:
            await call(request, timeout=TIMEOUT_SECONDS, metadata=((DEVICE_KEY, name),))  # type: ignore[operator]
            client.served.append(time.perf_counter() - started)
        except grpc.aio.AioRpcError as error:
            seconds = time.perf_counter() - started
            if error.code() is _REFUSED:
                client.refused.append(seconds)
                pause = float(dict(tuple(error.trailing_metadata() or ())).get(RETRY_AFTER_KEY, 0.05))
            elif error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                client.expired.append(seconds)
            else:
                raise
        await asyncio.sleep(pause)


async def offer(target: str, request: bytes, in_flight: list[int], seconds: float) -> list[Client]:
    """Has clients send, each with so many requests in flight; gives what came of it."""
    options = [*channel_options(64 << 20), OWN_CONNECTION]  # a connection for each client
    channels = [grpc.aio.insecure_channel(target, options=options) for _ in in_flight]
    clients = [Client() for _ in in_flight]
    begin = time.monotonic() + WARM_UP_SECONDS
    times = (begin, begin + seconds)
    try:
        await asyncio.gather(
            *(
                slot(client, channel.unary_unary(METHODS["Infer"].path), request, f"client-{number}", times)
                for number, (client, channel, slots) in enumerate(zip(clients, channels, in_flight, strict=True))
                for _ in range(slots)
            )
        )
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))
    return clients


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else 0.0


def request_for(server: Daemon) -> bytes:
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    with grpc.insecure_channel(server.target) as channel:
        list_models: Any = channel.unary_unary(METHODS["ListModels"].path)
        answer = list_models(b"")
    (info,) = offload_pb2.ListModelsResponse.FromString(answer).models
    head = offload_pb2.InferRequest(model=MODEL, digest=info.digest, codec="raw")
    return with_tensors(head, [image], CODECS["raw"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each step; four and a half minutes in all")
    parser.add_argument("--quick", action="store_true", help="5 seconds a step")
    options = parser.parse_args()
    seconds = 5.0 if options.quick else options.seconds
    export_missing()
    cores = sorted(os.sched_getaffinity(0))
    table = Table(
        "clients x in flight", "sent, x capacity", "served, x capacity", "p99 served", "p99 refused", "timeouts",
        "least and largest share", "MB", "", box=None,
    )  # fmt: skip
    failed = False
    with daemon("--models", MODEL, "--threads", "1", "--workers", "1", cores={cores[-1]}) as server:
        os.sched_setaffinity(0, {cores[0]})
        request = request_for(server)
        process = psutil.Process(server.process.pid)
        asyncio.run(offer(server.target, request, [8] * 8, 3.0))  # caches and allocators fill
        steps = [[k] * CLIENTS for k in IN_FLIGHT] + [[GREEDY, *[4] * (CLIENTS - 1)]]
        memory = process.memory_info().rss
        for step in track(steps, description="steps", console=console, transient=True):
            before = asyncio.run(offer(server.target, request, [4], seconds / 2))
            clients = asyncio.run(offer(server.target, request, step, seconds))
            after = asyncio.run(offer(server.target, request, [4], seconds / 2))
            capacity = (len(before[0].served) + len(after[0].served)) / seconds
            served = [len(client.served) for client in clients]
            throughput = sum(served) / seconds / capacity
            offered = sum(client.sent for client in clients) / seconds / capacity
            p99 = quantile([each for client in clients for each in client.served], 0.99)
            refusal = quantile([each for client in clients for each in client.refused], 0.99)
            timeouts = sum(len(client.expired) for client in clients)
            fair = statistics.mean(served)
            least, largest = min(served) / fair, max(served) / fair
            grown = process.memory_info().rss - memory
            passed = (
                throughput >= LEAST_THROUGHPUT
                and p99 <= TIMEOUT_SECONDS
                and refusal <= MOST_REFUSAL_SECONDS
                and least >= 1 - SHARE_TOLERANCE
                and largest <= 1 + SHARE_TOLERANCE
                and grown <= MOST_GROWTH
            )
            failed |= not passed
            name = f"{len(step)} x {step[-1]}" + (f", one x {step[0]}" if step[0] != step[-1] else "")
            table.add_row(
                name, f"{offered:.1f}", f"{throughput:.2f}", f"{p99 * 1e3:.0f} ms", f"{refusal * 1e3:.1f} ms",
                f"{timeouts} of {sum(client.sent for client in clients)}", f"{least:.2f} {largest:.2f}",
                f"{grown / 1e6:+.1f}", "PASS" if passed else "FAIL",
            )  # fmt: skip
    console.print(conditions())
    console.print(f"{MODEL}, cut 0; capacity {capacity:.1f} a second")
    console.print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
