"""A coverage-guided fuzzer on everything that reads bytes of strangers.

Each decoder runs in a process of its own, for its share of the minutes, guided by `atheris` (libFuzzer), from a few
right inputs. Whatever comes, only the error that the decoder documents may come out; an input that takes longer than a
second or more memory than the limit ends the run, and is kept.

    python -m benchmarks.fuzz [MINUTES]
    python -m benchmarks.fuzz run NAME SECONDS FOLDER     one decoder; done by the above
    python -m benchmarks.fuzz once NAME FILE              one input, to look at what was found
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MINUTES = 10.0
SLOWEST_SECONDS = 1
MEMORY_MEGABYTES = 1024
LARGEST_BYTES = 128 << 10
_FOUND_FOLDER = Path(os.environ.get("LOADPART_FUZZ_FOLDER", ".cache/fuzz"))
_START_SECONDS = 60.0

Target = tuple["Callable[[bytes], object]", tuple[type[Exception], ...], "list[bytes]"]
"""Reads bytes, what it may raise, and right inputs to begin with."""

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def _arrays() -> list[Any]:
    import numpy as np

    return [np.zeros((1, 4, 4, 3), np.uint8), np.ones((2, 3), np.float32)]


def request() -> Target:
    from loadpart.v1 import offload_pb2
    from loadpart_common.codecs.registry import CODECS
    from loadpart_common.errors import InputError, RequestError
    from loadpart_common.wire.framing import check, decode, read_message, with_tensors

    def read(data: bytes) -> None:
        _, tensors = read_message(offload_pb2.InferRequest, data)
        check(tensors, CODECS["raw"])
        decode(tensors, CODECS["raw"])

    head = offload_pb2.InferRequest(model="m", digest="0" * 64, cut=3, codec="raw")
    seeds = [with_tensors(head, arrays, CODECS["raw"]) for arrays in (_arrays()[:1], _arrays(), [])]
    return read, (RequestError, InputError), seeds


def response() -> Target:
    from loadpart.v1 import offload_pb2
    from loadpart_common.codecs.registry import CODECS
    from loadpart_common.errors import InputError, RequestError
    from loadpart_common.tensors import TensorSpec, check_arrays
    from loadpart_common.wire.framing import decode, read_message, with_tensors

    specs = (TensorSpec("image", "uint8", (-1, 4, 4, 3)),)

    def read(data: bytes) -> None:
        _, tensors = read_message(offload_pb2.InferResponse, data)
        check_arrays(decode(tensors, CODECS["raw"], copy=True), specs, 1)

    head = offload_pb2.InferResponse(tail_seconds=0.1, status=offload_pb2.ServerStatus(workers=1))
    seeds = [with_tensors(head, arrays, CODECS["raw"]) for arrays in (_arrays()[:1], _arrays())]
    return read, (RequestError, InputError), seeds


def walk() -> Target:
    from loadpart_common.protobuf_fields import WireError, fields

    def read(data: bytes) -> None:
        for _, start, value, end in fields(memoryview(data), 0, len(data)):
            if not 0 <= start < value <= end <= len(data):
                raise AssertionError((start, value, end))

    return read, (WireError,), [b"\x08\x01\x12\x02ab\x1d\0\0\0\0\x21\0\0\0\0\0\0\0\0"]


def manifest() -> Target:
    from loadpart_common.errors import ModelError
    from loadpart_common.store.manifest import Manifest, outdated_labels

    def read(data: bytes) -> None:
        outdated_labels(data)
        Manifest.from_bytes(data, "a test").to_bytes()

    right = Manifest("m", "mindir", "0" * 64, 12, ("cat", "dog")).to_bytes()
    return read, (ModelError,), [right, right.replace(b'"format": 3', b'"format": 2')]


def pieces() -> Target:
    """The messages of a call, each behind two bytes with its length."""
    import grpc

    from loadpart.v1 import offload_pb2
    from loadpart_common.errors import InputError, MessageTooLargeError, OverloadedError, RequestError
    from loadpart_common.protobuf_fields import field_prefix
    from loadpart_common.wire.framing import read_message
    from loadpart_edge.rpc.call import Call
    from loadpart_edge.rpc.pending_reads import PendingReads
    from loadpart_edge.rpc.quota import Quota
    from loadpart_edge.scheduling.job import Owner

    class Messages:
        def __init__(self, data: bytes) -> None:
            self.left = data

        def time_remaining(self) -> None:
            return None

        def peer(self) -> str:
            return "ipv4:127.0.0.1:1"

        async def read(self) -> Any:
            if not self.left:
                return grpc.aio.EOF
            size = int.from_bytes(self.left[:2], "big")
            message, self.left = self.left[2 : 2 + size], self.left[2 + size :]
            return message

    loop = asyncio.new_event_loop()
    quota = Quota("bytes", in_all=8 << 20, of_party=8 << 20, of_device=8 << 20)
    reads = PendingReads(8 << 20)

    def read(data: bytes) -> None:
        call = Call(Messages(data), Owner("party", "device"), quota, reads)  # type: ignore[arg-type]
        try:
            read_message(offload_pb2.InferRequest, loop.run_until_complete(call.read_whole(4 << 20, lambda _: 4 << 20)))
        finally:
            call.close()
            if quota.taken:
                raise AssertionError(f"{quota.taken} bytes are still held")

    def framed(*messages: bytes) -> bytes:
        return b"".join(len(message).to_bytes(2, "big") + message for message in messages)

    request_seed = functools.partial(offload_pb2.InferRequest, model="m", codec="raw")
    tensor = offload_pb2.InferRequest(
        tensors=[offload_pb2.Tensor(data_type=offload_pb2.DATA_TYPE_UINT8, shape=[3], data=b"abc")]
    )
    whole = tensor.SerializeToString()
    head = request_seed(total_bytes=len(whole)).SerializeToString()
    prefix = field_prefix(offload_pb2.InferRequest.PIECE_FIELD_NUMBER, 4)
    rest = field_prefix(offload_pb2.InferRequest.PIECE_FIELD_NUMBER, len(whole) - 4)
    seeds = [framed(head, prefix + whole[:4], rest + whole[4:]), framed(whole), framed(head)]
    return read, (RequestError, InputError, MessageTooLargeError, OverloadedError), seeds


def mindir() -> Target:
    import numpy as np

    from loadpart.mindir.v1 import mindir_pb2
    from loadpart_common.errors import ModelError
    from loadpart_common.formats.mindir.dtypes import DTYPE_BY_NUMBER
    from loadpart_common.formats.mindir.format import MindIR

    folder = tempfile.mkdtemp(prefix="loadpart-fuzz-", dir="/dev/shm")
    path = Path(folder) / "model.mindir"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        model = MindIR().open(path)
        try:
            model.digest()
            graph = model.graph
            for cut in graph.cuts:
                cut.nbytes()
        finally:
            model.close()

    weight = mindir_pb2.Tensor(name="g:w", dims=[2, 3], data_type=1, raw_data=np.zeros(6, np.float32).tobytes())
    graph = mindir_pb2.Graph(name="g", parameter=[weight], node=[mindir_pb2.Node(op_type="REF::ReLU", name="r")])
    seeds = [mindir_pb2.Model(graph=graph).SerializeToString()]
    stored = sorted(Path(os.environ.get("LOADPART_EDGE_STORE", ".cache/models")).glob("squeezenet/*.mindir"))
    for each in stored:  # a real network, with weights of one element
        model = mindir_pb2.Model.FromString(each.read_bytes())
        for parameter in model.graph.parameter:
            parameter.raw_data = bytes(np.dtype(DTYPE_BY_NUMBER[parameter.data_type]).itemsize)
            parameter.dims[:] = [1] * len(parameter.dims)
        seeds.append(model.SerializeToString())
        del model.graph.node[12:]
        seeds.append(model.SerializeToString())
    return read, (ModelError,), seeds


def worker() -> Target:
    from loadpart_edge.workers.local.messages import Failed, TailPrepared, TailRan, decode_answer, encode_answer

    answers = (
        TailRan(10, 0.1, 0.0, 0.0, ()),
        TailRan(10, 0.1, 0.0, 0.0, (("0" * 64, 1, 2),)),
        TailPrepared(0.1, 1 << 30, ()),
        Failed("INPUT", "text"),
    )
    return decode_answer, (ValueError,), [encode_answer(answer) for answer in answers]


TARGETS: dict[str, Callable[[], Target]] = {
    "request": request,
    "response": response,
    "fields": walk,
    "manifest": manifest,
    "pieces": pieces,
    "mindir": mindir,
    "worker": worker,
}


def fuzz(name: str, seconds: float, found: Path) -> None:
    """Fuzzes one decoder in this process, which ends."""
    import atheris

    with atheris.instrument_imports(include=["loadpart_common", "loadpart_edge"]):
        read, allowed, seeds = TARGETS[name]()

    def try_one(data: bytes) -> None:
        with contextlib.suppress(*allowed):
            read(data)

    corpus = tempfile.mkdtemp(prefix="loadpart-fuzz-", dir="/dev/shm")
    for number, seed in enumerate(seeds):
        (Path(corpus) / str(number)).write_bytes(seed)
    options = [
        f"-max_total_time={seconds:.0f}",
        f"-timeout={SLOWEST_SECONDS}",
        f"-rss_limit_mb={MEMORY_MEGABYTES}",
        f"-max_len={LARGEST_BYTES}",
        f"-artifact_prefix={found}/{name}-",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    atheris.Setup(["fuzz", *options, corpus], try_one, internal_libfuzzer=True)
    atheris.Fuzz()


def once(name: str, path: Path) -> None:
    """Gives a decoder one input, and lets out what comes out."""
    read, allowed, _ = TARGETS[name]()
    try:
        read(path.read_bytes())
    except allowed as error:
        console.print(f"{type(error).__name__}: {error}", markup=False)


def summary(log: str) -> tuple[int, int]:
    """Inputs tried and branches seen, as libFuzzer logs them."""
    tried = re.findall(r"(?:number_of_executed_units:|^#)\s*(\d+)", log, re.MULTILINE)
    covered = re.findall(r"(?:cov|ft): (\d+)", log)
    return max(map(int, tried), default=0), max(map(int, covered), default=0)


def main(minutes: float, names: Iterable[str] = tuple(TARGETS)) -> None:
    found = _FOUND_FOLDER
    found.mkdir(parents=True, exist_ok=True)
    seconds = minutes * 60 / len(TARGETS)
    table = Table(
        "decoder", "seconds", "inputs", "features", "ended", title=f"{minutes:g} minutes", header_style="bold"
    )
    is_bad = False
    for name in track(list(names), description="fuzzing", console=console, transient=True):
        started = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.fuzz", "run", name, str(seconds), str(found)]
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            code = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=seconds + _START_SECONDS, check=False
            ).returncode
            log.seek(0)
            text = log.read()
        tried, covered = summary(text)
        table.add_row(
            name, f"{time.monotonic() - started:.0f}", f"{tried:,}", str(covered), "PASS" if code == 0 else "FAIL"
        )
        if code:
            is_bad = True
            console.print(f"{name}:\n{text[-4000:]}", markup=False)
    console.print(table)
    if is_bad:
        console.print(f"the inputs are in {found}; 'python -m benchmarks.fuzz once NAME FILE' repeats one")
        sys.exit(1)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", name, seconds, folder]:
            fuzz(name, float(seconds), Path(folder))
        case ["once", name, path]:
            once(name, Path(path))
        case [minutes]:
            main(float(minutes))
        case _:
            main(MINUTES)
