"""Malformed requests on every method: each must get a documented status, and leave the daemon as it was."""

from __future__ import annotations

import asyncio
import random
import subprocess
import time
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families
from rich.progress import Progress

from benchmarks.daemon import Daemon, daemon
from benchmarks.security.honest import MODEL
from benchmarks.security.report import Report, console
from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS
from loadpart_common.protobuf_fields import encode_varint, field_prefix
from loadpart_common.wire.error_codes import ERROR_KEY
from loadpart_common.wire.framing import decode, read_message, with_tensors
from loadpart_common.wire.limits import DEVICE_KEY, OWN_CONNECTION, PIECE_BYTES
from loadpart_common.wire.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REQUESTS, QUICK_REQUESTS, SETTLED = 100_000, 10_000, 0.2
PARALLEL = 24
GOOD = 50
GROWTH_BYTES = 24 << 20
"""Resident memory that a process may gain from the first fifth of the requests to the end."""

DOCUMENTED = {
    "OK", "INVALID_ARGUMENT", "OUT_OF_RANGE", "FAILED_PRECONDITION", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNIMPLEMENTED",
    "ended early",
}  # fmt: skip
"""What a malformed request may be answered with; UNIMPLEMENTED only where there is no such method."""

ENDED_EARLY = "ended early"
"""gRPC's asynchronous client says INTERNAL itself when a call ends while it still sends, and hides the status. What the
server answered to those is among its own counts, which must not have INTERNAL or UNKNOWN."""

_CLIENTS_OWN = ("", "Internal error from Core")

Messages = list[bytes]
Metadata = tuple[tuple[str, "str | bytes"], ...]
_INFER, _PIECE = offload_pb2.InferRequest, offload_pb2.InferRequest.PIECE_FIELD_NUMBER
PATHS = {name: method.path for name, method in METHODS.items()} | {
    name: f"/grpc.health.v1.Health/{name}" for name in ("Check", "Watch")
}


class Maker:
    """Makes malformed requests.

    Attributes:
        good: A right inference.
    """

    def __init__(self, digest: str, seed: int) -> None:
        self._rng = random.Random(seed)
        self._digest = digest
        image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
        self._image = image
        self.good = with_tensors(_INFER(model=MODEL, digest=digest, codec="raw"), [image], CODECS["raw"])
        self._tensors = self.good[len(_INFER(model=MODEL, digest=digest, codec="raw").SerializeToString()) :]
        self._ways: tuple[Callable[[], tuple[str, Messages]], ...] = (
            self._noise, self._noise, self._cut_short, self._flipped, self._claim, self._names, self._wrong_place,
            self._wrong_tensors, self._field_bomb, self._pieces, self._pieces, self._other_method, self._probe,
        )  # fmt: skip

    def make(self) -> tuple[str, Messages, Metadata]:
        """A method, the messages to send, and metadata."""
        method, messages = self._rng.choice(self._ways)()
        return method, messages, self._metadata()

    def _metadata(self) -> Metadata:
        rng = self._rng
        text = "".join(chr(rng.randrange(32, 127)) for _ in range(rng.randrange(1, 80)))
        return rng.choice((
            *[()] * 8,
            ((DEVICE_KEY, text),),
            ((DEVICE_KEY, "x" * rng.randrange(1000, 7000)),),
            ((DEVICE_KEY, "a"), (DEVICE_KEY, "b")),
            ((f"{DEVICE_KEY}-bin", rng.randbytes(50)),),
            (("authorization", text),),
            (("authorization", "Bearer "),),
            tuple((f"key-{number}", text) for number in range(rng.randrange(1, 60))),
            (("huge", "x" * rng.randrange(8_000, 40_000)),),
        ))  # fmt: skip

    def _noise(self) -> tuple[str, Messages]:
        method = self._rng.choice(tuple(PATHS))
        return method, [self._rng.randbytes(self._rng.randrange(500)) for _ in range(self._rng.choice((0, 1, 1, 1, 3)))]

    def _cut_short(self) -> tuple[str, Messages]:
        return "Infer", [self.good[: self._rng.randrange(len(self.good))]]

    def _flipped(self) -> tuple[str, Messages]:
        data = bytearray(self.good)
        for _ in range(self._rng.randrange(1, 9)):
            data[self._rng.randrange(150)] ^= 1 << self._rng.randrange(8)
        return "Infer", [bytes(data)]

    def _claim(self) -> tuple[str, Messages]:
        rng = self._rng
        shape = [rng.choice((0, 1, 224, -1, 2**31, 2**40, 2**62)) for _ in range(rng.randrange(40))]
        tensor = offload_pb2.Tensor(data_type=rng.randrange(20), shape=shape, data=bytes(rng.randrange(200)))  # type: ignore[arg-type]
        return "Infer", [_INFER(model=MODEL, digest=self._digest, codec="raw", tensors=[tensor]).SerializeToString()]

    def _names(self) -> tuple[str, Messages]:
        rng = self._rng
        name = rng.choice(("", "nothing", "../../etc/passwd", "x" * rng.randrange(20_000), "\n\x1b[31m", "\0"))
        if rng.random() < 0.3:
            return "GetModel", [offload_pb2.GetModelRequest(model=name).SerializeToString()]
        wrong = {rng.choice(("model", "digest", "codec")): name}
        return "Infer", [self._infer(**wrong)]

    def _wrong_place(self) -> tuple[str, Messages]:
        return "Infer", [self._infer(cut=self._rng.choice((1, 5, 40, 93, 94, 95, 2**31, 2**32 - 1)))]

    def _wrong_tensors(self) -> tuple[str, Messages]:
        rng, image = self._rng, self._image
        arrays = rng.choice((
            [], [image, image], [image.astype("bool")], [image[:, :100]], [image[0]], [image[:, :, :, :0]],
            [np.zeros((0, 224, 224, 3), np.uint8)], [np.zeros((1, 3), np.float64)],
        ))  # fmt: skip
        head = _INFER(model=MODEL, digest=self._digest, codec="raw")
        return "Infer", [with_tensors(head, arrays, CODECS["raw"])]

    def _field_bomb(self) -> tuple[str, Messages]:
        rng = self._rng
        field = rng.choice((b"\x22\x00", b"\x08\x00", b"\x2a\x00", b"\x22\x02\x10\x01", b"\x0b\x0c", b"\xff" * 10))
        most = PIECE_BYTES if rng.random() < 0.02 else 4000
        method = rng.choice(("Infer", "Infer", "Probe", "GetModel", "Check"))
        return method, [field * rng.randrange(1, most // len(field))]

    def _pieces(self) -> tuple[str, Messages]:
        """A request in pieces, with a lie in it."""
        rng, tensors = self._rng, self._tensors
        size = rng.choice((1, 5_000, 50_000, len(tensors)))
        count = min(-(-len(tensors) // size), 40)
        parts = [tensors[number * size : (number + 1) * size] for number in range(count)]
        pieces = [field_prefix(_PIECE, len(part)) + part for part in parts]
        total = rng.choice((
            len(tensors), len(tensors) + 1, len(tensors) - 1, 1, 2**20, 2**28, 2**28 + 2**20, 2**40, 2**64 - 1,
        ))  # fmt: skip
        lie = rng.randrange(7)
        if lie == 0:
            rng.shuffle(pieces)
        elif lie == 1:
            pieces.insert(rng.randrange(len(pieces) + 1), rng.randbytes(20))
        elif lie == 2:
            pieces.insert(rng.randrange(len(pieces) + 1), b"")
        elif lie == 3:
            pieces = pieces[:-1]
        elif lie == 4:
            pieces[0] += pieces[0]
        elif lie == 5:
            pieces[0] = encode_varint(_PIECE << 3 | 2) + encode_varint(rng.randrange(2**40))
        return "Infer", [
            _INFER(model=MODEL, digest=self._digest, codec="raw", total_bytes=total).SerializeToString(),
            *pieces,
        ]

    def _other_method(self) -> tuple[str, Messages]:
        rng = self._rng
        return rng.choice(("Nothing", "Infer", "WatchStatus", "ListModels", "Check", "Watch")), [
            offload_pb2.GetModelRequest(model="x" * rng.randrange(3_000)).SerializeToString()
        ] * rng.randrange(1, 4)  # fmt: skip

    def _probe(self) -> tuple[str, Messages]:
        rng = self._rng
        size = rng.choice((0, 1, rng.randrange(2**20 + 1, 2**32)))
        return "Probe", [
            offload_pb2.ProbeRequest(payload=bytes(rng.randrange(3_000)), response_bytes=size).SerializeToString()
        ]

    def _infer(self, **wrong: Any) -> bytes:
        fields = {"model": MODEL, "digest": self._digest, "codec": "raw"} | wrong
        return with_tensors(_INFER(**fields), [self._image], CODECS["raw"])


async def send(channel: grpc.aio.Channel, method: str, messages: Messages, metadata: Metadata) -> tuple[str, str]:
    """Sends messages to a method and waits for the first answer; gives the status, and the error's code."""

    def each() -> Iterator[bytes]:
        yield from messages

    path = PATHS.get(method, f"/loadpart.v1.Offload/{method}")
    to: Any = channel.stream_stream(path)
    stream = to(each(), metadata=metadata, timeout=20)
    try:
        await stream.read()
        if stream.done():
            code = await stream.code()
            if code is grpc.StatusCode.INTERNAL:
                return ENDED_EARLY, ""
            if code is not grpc.StatusCode.OK:
                trailing = {key: str(value) for key, value in await stream.trailing_metadata() or ()}
                return code.name, trailing.get(ERROR_KEY, "")
    except grpc.aio.AioRpcError as error:
        trailing = {key: str(value) for key, value in error.trailing_metadata() or ()}
        name = error.code().name
        if name == "INTERNAL" and (error.details() or "") in _CLIENTS_OWN and ERROR_KEY not in trailing:
            return ENDED_EARLY, ""
        return name, trailing.get(ERROR_KEY, "") or (error.details() or "")[:80]
    finally:
        stream.cancel()
    return "OK", ""


async def flood(
    server: Daemon, digest: str, requests: int, processes: list[psutil.Process]
) -> tuple[Counter[tuple[str, str, str]], list[int]]:
    """Sends malformed requests; gives answers by method, and the memory of the processes when they had settled."""
    found: Counter[tuple[str, str, str]] = Counter()
    settled: list[int] = []
    left = iter(range(requests))
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("malformed requests", total=requests)

        async def caller(seed: int) -> None:
            maker = Maker(digest, seed)
            async with grpc.aio.insecure_channel(
                server.target, options=[OWN_CONNECTION, ("grpc.enable_retries", 0)]
            ) as channel:
                for number in left:
                    method, messages, metadata = maker.make()
                    found[(method, *await send(channel, method, messages, metadata))] += 1
                    progress.update(bar, completed=number)
                    if number == int(requests * SETTLED):
                        settled.extend(process.memory_info().rss for process in processes)

        await asyncio.gather(*(caller(seed) for seed in range(PARALLEL)))
    return found, settled


def answered(metrics: str) -> Counter[str]:
    """Answers by status, as the server counts them."""
    with urllib.request.urlopen(metrics, timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    counts: Counter[str] = Counter()
    for sample in (sample for family in families for sample in family.samples):
        if sample.name == "loadpart_edge_requests_total":
            counts[sample.labels["code"]] += int(sample.value)
    return counts


def run(report: Report, store: str, *, quick: bool) -> None:
    """Sends malformed requests, and compares a right one before and after."""
    requests = QUICK_REQUESTS if quick else REQUESTS
    arguments = ("--store", store, "--models", MODEL, "--threads", "1", "--metrics-listen", "127.0.0.1:0")
    with (
        daemon(*arguments, "--refusals-per-second", "1e9", stderr=subprocess.DEVNULL) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        list_models: Any = channel.unary_unary(PATHS["ListModels"])
        infer: Any = channel.unary_unary(PATHS["Infer"])
        (info,) = offload_pb2.ListModelsResponse.FromString(list_models(b"")).models
        good = Maker(info.digest, 0).good

        def answer() -> Any:
            return decode(read_message(offload_pb2.InferResponse, infer(good, timeout=30))[1], CODECS["raw"])[0]

        expected = answer()
        main = psutil.Process(server.process.pid)
        processes = [main, *main.children()]
        started = time.monotonic()
        found, settled = asyncio.run(flood(server, info.digest, requests, processes))
        seconds = time.monotonic() - started
        right = sum(np.array_equal(answer(), expected) for _ in range(GOOD))
        same = [process.pid for process in main.children()] == [process.pid for process in processes[1:]]
        counted = answered(server.metrics)
        grown = [process.memory_info().rss - before for process, before in zip(processes, settled, strict=True)]
    table = report.table(f"{requests:,} malformed requests in {seconds:.0f} s", "method", "answers")
    for method in sorted({method for method, _, _ in found}):
        codes: Counter[str] = Counter()
        strange: Counter[str] = Counter()
        for (name, status, code), number in found.items():
            if name == method:
                codes[status] += number
                documented = status in DOCUMENTED and (status != "UNIMPLEMENTED" or method not in PATHS)
                if not documented:
                    strange[f"{status} {code}"] += number
        text = ", ".join(f"{status} {number:,}" for status, number in codes.most_common())
        report.add(table, not strange, method, f"{text}{f' {dict(strange)}' if strange else ''}")
    said = ", ".join(f"{code} {number:,.0f}" for code, number in counted.most_common())
    report.add(table, not counted["INTERNAL"] + counted["UNKNOWN"], "as the server counts", said)
    report.add(table, right == GOOD, "right requests after", f"{right} of {GOOD} with the same output")
    report.add(table, same, "workers", "lived" if same else "DIED")
    for name, growth, before in zip(("main", "worker"), grown, settled, strict=False):
        report.add(
            table, growth <= GROWTH_BYTES, f"{name}: memory", f"{before / 1e6:.0f} MB, then {growth / 1e6:+.1f} MB"
        )
    console.print(table)
