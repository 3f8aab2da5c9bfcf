"""10,000 malformed or wrong requests, then 100 good ones.

With `--payloads` only what a codec wrote is wrong: it is changed at random, which may give a tensor all the same, or it
is a bomb. The benchmark fails if a good request gets a wrong answer, if a bad one is answered with INTERNAL or UNKNOWN,
if a worker dies, or if the server's memory grows. Memory is read after the first thousand requests, when caches and the
allocator's arenas have filled, and at the end.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import struct
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks.daemon import conditions, daemon, export_missing
from benchmarks.photographs import COFFEE
from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS
from loadpart_common.engines.registry import DEFAULT_ENGINE, ENGINES
from loadpart_common.store.model_store import ModelStore
from loadpart_common.tensors import BATCH, TensorSpec
from loadpart_common.wire.framing import decode, read_message, with_tensors
from loadpart_common.wire.limits import channel_options
from loadpart_common.wire.methods import METHODS
from loadpart_device.images import load_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.tensors import Array

BAD, GOOD, SETTLED = 10_000, 100, 1_000
MODEL = "squeezenet"
LIMIT_GROWTH_MEGABYTES = 16.0
RAW = CODECS["raw"]
_TYPES = {"uint8": offload_pb2.DATA_TYPE_UINT8, "float32": offload_pb2.DATA_TYPE_FLOAT32}

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


def payloads(info: offload_pb2.ModelInfo, image: Array) -> list[Callable[[random.Random], tuple[str, bytes]]]:
    """Generators of requests whose tensors are written wrong: payloads that are changed at random, and bombs."""
    numbers = np.maximum(np.random.default_rng(0).standard_normal(_spec(info).concrete(1)), 0).astype(np.float32)
    by_codec = {
        name: (0, image) if not name.startswith("q8") else (_cut(info), numbers) for name in CODECS if name != "raw"
    }

    def message(codec: str, payload: bytes) -> tuple[str, bytes]:
        cut, array = by_codec[codec]
        tensor = offload_pb2.Tensor(data_type=_TYPES[array.dtype.name], shape=array.shape, data=payload)
        request = offload_pb2.InferRequest(model=MODEL, digest=info.digest, cut=cut, codec=codec, tensors=[tensor])
        return "Infer", request.SerializeToString()

    def mutated(codec: str, good: bytes, rng: random.Random) -> tuple[str, bytes]:
        data = bytearray(good)
        for _ in range(rng.randrange(1, 9)):
            place = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[rng.randrange(min(len(data), 64))] = rng.randrange(256)  # in the headers
                case 1:
                    data[place] = rng.randrange(256)
                case 2:
                    data[place : place + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(9))
                case _:
                    del data[len(data) - rng.randrange(1, 9) :]
        return message(codec, bytes(data))

    goods = {codec: bytes(CODECS[codec].encode(array) or b"") for codec, (_, array) in by_codec.items()}
    bombs = [message(codec, data) for codec, data in _bombs()]
    return [
        *(partial(mutated, codec, good) for codec, good in goods.items()),
        lambda rng: rng.choice(bombs),
    ]


def _spec(info: offload_pb2.ModelInfo) -> TensorSpec:
    """What crosses at the cut where numbers are sent."""
    (spec,) = ModelStore(Path(os.environ["LOADPART_EDGE_STORE"])).open(MODEL).graph.cut(_cut(info)).specs
    return spec


def _cut(info: offload_pb2.ModelInfo) -> int:
    """The first cut where numbers may be sent."""
    return next(plan.cut for plan in info.ready_plans if plan.codec == "q8z")


def _bombs() -> list[tuple[str, bytes]]:
    """Little that becomes much: 256 MB of zeros, a canvas of 16,000 by 16,000, thousands of scans, and others."""
    from backports import zstd

    def picture(side: int, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (side, side)).save(file, kind, **options)
        return struct.pack("<I", file.tell()) + file.getvalue()

    webp = picture(224, "WEBP", lossless=True)[16:]
    canvas = struct.pack("<4sI4B", b"VP8X", 10, 0, 0, 0, 0) + 2 * (15_999).to_bytes(3, "little")
    declared = b"RIFF" + struct.pack("<I", 4 + len(canvas + webp)) + b"WEBP" + canvas + webp
    jpeg = picture(224, "JPEG")[4:]
    scan = jpeg.index(b"\xff\xda")
    scans = jpeg[:scan] + jpeg[scan : scan + 14] * 5_000 + jpeg[scan:]
    zeros = zstd.compress(bytes(256 << 20), 1)
    return [
        ("q8z", zeros),
        ("q8z", zeros * 4),
        ("webp-lossless", picture(8_000, "WEBP", lossless=True)),
        ("webp-lossless", struct.pack("<I", len(declared)) + declared),
        ("jpeg-90", picture(6_000, "JPEG")[:140_000]),
        ("jpeg-90", picture(224, "JPEG", progressive=True)),
        ("jpeg-90", struct.pack("<I", len(scans)) + scans),
        ("jpeg-90", struct.pack("<I", 2**32 - 1)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--payloads", action="store_true", help="requests that are right but for what a codec wrote")
    parser.add_argument("--engine", choices=list(ENGINES), default=DEFAULT_ENGINE, help="engine of the server")
    options = parser.parse_args()
    export_missing()
    rng = random.Random(0)
    image = load_images([COFFEE], TensorSpec("image", "uint8", (BATCH, 224, 224, 3)))
    with (
        # Without the penalty for wrong calls, which would keep most of them from being looked at.
        daemon("--models", MODEL, "--engine", options.engine, "--refusals-per-second", "1e9") as server,
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
        ways = payloads(info, image) if options.payloads else requests(good, info.digest, image)
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
