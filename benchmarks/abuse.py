"""10,000 malformed or wrong requests, then 100 good ones.

The benchmark fails if a good request gets a wrong answer, if a bad one is answered with INTERNAL or UNKNOWN, if a
worker dies, or if the server's memory grows. Memory is read after the first thousand requests, when caches and the
allocator's arenas have filled, and at the end.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import psutil
from rich.console import Console
from rich.progress import track

from benchmarks.daemon import conditions, daemon, export_missing
from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS
from loadpart_common.wire.framing import decode, read_message, with_tensors
from loadpart_common.wire.limits import channel_options
from loadpart_common.wire.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.tensors import Array

BAD, GOOD, SETTLED = 10_000, 100, 1_000
MODEL = "squeezenet"
LIMIT_GROWTH_MEGABYTES = 16.0
RAW = CODECS["raw"]

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def requests(good: bytes, digest: str, image: Array) -> list[Callable[[random.Random], tuple[str, bytes]]]:
    """Generators of bad requests; each returns the name of a method and the bytes to send."""

    def infer(arrays: list[Array], **fields: object) -> tuple[str, bytes]:
        message = {"model": MODEL, "digest": digest, "cut": 0, "codec": "raw"} | fields
        return "Infer", with_tensors(offload_pb2.InferRequest(**message), arrays, RAW)  # type: ignore[arg-type]

    def claim(rng: random.Random) -> tuple[str, bytes]:
        tensor = offload_pb2.Tensor(
            data_type=offload_pb2.DATA_TYPE_UINT8,
            shape=[rng.randrange(2**40), 224, 224, 3],
            data=b"x" * rng.randrange(100),
        )
        request = offload_pb2.InferRequest(model=MODEL, digest=digest, codec="raw", tensors=[tensor])
        return "Infer", request.SerializeToString()

    def flipped(rng: random.Random) -> tuple[str, bytes]:
        data = bytearray(good)
        for _ in range(8):
            data[rng.randrange(150)] ^= 1 << rng.randrange(8)  # the first fields: model, digest, cut, codec, shape
        return "Infer", bytes(data)

    return [
        lambda rng: ("Infer", rng.randbytes(rng.randrange(1, 500))),
        lambda rng: ("Infer", good[: rng.randrange(1, len(good) - 1)]),
        flipped,
        claim,
        lambda rng: infer([image], model=rng.choice(["", "nothing", "../etc", "x" * 5000])),
        lambda rng: infer([image], digest=rng.choice(["", "0" * 64])),
        lambda rng: infer([image], cut=rng.choice([94, 95, 2**31])),
        lambda rng: infer([image], cut=rng.randrange(5, 90)),
        lambda rng: infer([image] * rng.choice([0, 2, 9])),
        lambda rng: infer([image.astype(rng.choice(["float32", "int64", "bool"]))]),
        lambda rng: infer([np.zeros((rng.randrange(3), rng.randrange(300), 224, 3), np.uint8)]),
        lambda rng: infer([image], codec=rng.choice(["", "zip", "raw "])),
        lambda rng: ("Probe", offload_pb2.ProbeRequest(response_bytes=rng.randrange(2**25, 2**32)).SerializeToString()),
        lambda rng: ("Probe", b"\x0a" + rng.randbytes(20)),
    ]


def main() -> None:
    export_missing()
    rng = random.Random(0)
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    with (
        daemon("--models", MODEL) as server,
        grpc.insecure_channel(server.target, options=channel_options(256 << 20)) as channel,
    ):
        calls: dict[str, Any] = {
            name: channel.unary_unary(METHODS[name].path) for name in ("Infer", "Probe", "ListModels")
        }
        (info,) = offload_pb2.ListModelsResponse.FromString(calls["ListModels"](b"")).models
        head = offload_pb2.InferRequest(model=MODEL, digest=info.digest, codec="raw")
        good = with_tensors(head, [image], RAW)

        def answer() -> Array:
            _, tensors = read_message(offload_pb2.InferResponse, calls["Infer"](good, timeout=30))
            return decode(tensors, RAW)[0]

        expected = answer()
        main_process = psutil.Process(server.process.pid)
        processes = [main_process, *main_process.children()]
        ways = requests(good, info.digest, image)
        statuses: Counter[str] = Counter()
        settled: list[int] = []
        started = time.monotonic()
        for number in track(range(BAD), description="bad requests", console=console, transient=True):
            method, data = ways[number % len(ways)](rng)
            try:
                calls[method](data, timeout=30)
                statuses["OK"] += 1
            except grpc.RpcError as error:
                statuses[error.code().name] += 1
            if number == SETTLED:
                settled = [process.memory_info().rss for process in processes]
        seconds = time.monotonic() - started
        right = sum(np.array_equal(answer(), expected) for _ in range(GOOD))
        grown = [process.memory_info().rss - before for process, before in zip(processes, settled, strict=True)]
        same = [process.pid for process in main_process.children()] == [process.pid for process in processes[1:]]
    console.print(conditions())
    console.print(f"{BAD} bad requests in {seconds:.1f} s: {dict(statuses.most_common())}")
    console.print(f"{right} of {GOOD} good requests answered right; workers {'lived' if same else 'DIED'}")
    for name, process, growth in zip(("main", "worker"), settled, grown, strict=False):
        console.print(f"{name}: {process / 1e6:.0f} MB after {SETTLED}, {growth / 1e6:+.1f} MB at the end")
    failed_inside = statuses["INTERNAL"] + statuses["UNKNOWN"]
    if failed_inside or right < GOOD or not same or max(grown) > LIMIT_GROWTH_MEGABYTES * 1e6:
        sys.exit(1)


if __name__ == "__main__":
    main()
