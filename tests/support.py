"""Functions and classes that several test modules use."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from unittest import mock

import grpc
import numpy as np
from benchmarks.daemon import BIN

from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS
from loadpart_common.wire.error_codes import error_of
from loadpart_common.wire.framing import decode, read_message, with_tensors
from loadpart_common.wire.limits import DEVICE_KEY, channel_options
from loadpart_common.wire.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadpart_common.graph import Graph
    from loadpart_common.tensors import Array

RAW = CODECS["raw"]


def store_of(exported: Path, target: Path, *names: str) -> Path:
    """Copies exported networks into a model store; without names, all that can be served."""
    from tests.networks import SERVABLE

    for name in names or SERVABLE:
        shutil.copytree(exported / name, target / name)
    return target


def inputs_for(graph: Graph, batch: int = 1, seed: int = 0) -> list[Array]:
    """Random inputs of a network."""
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(spec.concrete(batch)) * 50 + 100).astype(spec.dtype) for spec in graph.inputs]


def run_program(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command line of the project to its end, in a process of its own."""
    return subprocess.run([BIN / program, *arguments], capture_output=True, text=True, timeout=120, check=False)


def run_all(*commands: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """Runs processes side by side, since each takes seconds to import MindSpore."""
    with ThreadPoolExecutor(len(commands)) as pool:
        return list(
            pool.map(
                lambda command: subprocess.run(command, capture_output=True, text=True, timeout=120, check=False),
                commands,
            )
        )


def code(text: str) -> list[str]:
    """The command that runs a program."""
    return [sys.executable, "-X", "dev", "-W", "ignore", "-c", textwrap.dedent(text)]


def run_here(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a command line of the project to its end in this process, which saves a second of imports."""
    from loadpart_device.cli import main as device
    from loadpart_edge.__main__ import main as edge

    out, errors = io.StringIO(), io.StringIO()
    command = [program, *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        try:
            {"loadpart-device": device, "loadpart-edge": edge}[program]()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return subprocess.CompletedProcess(command, code, out.getvalue(), errors.getvalue())


def eventually(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {seconds:g} s")
        time.sleep(0.01)


def rests(reading: Callable[[], float], seconds: float = 0.3) -> bool:
    """Whether a reading stays the same for `seconds`; only waiting can show that nothing happens."""
    before = reading()
    time.sleep(seconds)
    return reading() == before


class Clock:
    """A clock in seconds whose time the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class RawClient:
    """A client that uses the protocol without the SDK, as other software would."""

    def __init__(self, target: str) -> None:
        self.channel = grpc.insecure_channel(target, options=channel_options(64 << 20))

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def call(self, method: str, data: bytes, timeout: float = 30.0, *, caller: str = "") -> bytes:
        """Sends bytes to a unary method."""
        metadata = ((DEVICE_KEY, caller),) if caller else None
        return self.channel.unary_unary(METHODS[method].path)(data, timeout=timeout, metadata=metadata)

    def infer(self, arrays: list[Array], *, caller: str = "", **fields: object) -> list[Array]:
        """Runs a tail on the server; raises the same errors as the SDK."""
        message = offload_pb2.InferRequest(**({"codec": "raw"} | fields))  # type: ignore[arg-type]
        return self.infer_bytes(with_tensors(message, arrays, RAW), caller=caller)

    def infer_bytes(self, data: bytes, *, caller: str = "") -> list[Array]:
        try:
            return decode(read_message(offload_pb2.InferResponse, self.call("Infer", data, caller=caller))[1], RAW)
        except grpc.RpcError as error:
            raise error_of(error) from error

    def models(self) -> dict[str, offload_pb2.ModelInfo]:
        response = offload_pb2.ListModelsResponse.FromString(self.call("ListModels", b""))
        return {model.name: model for model in response.models}

    def status_of(self, method: str, data: bytes) -> grpc.StatusCode:
        """The gRPC status of a call that fails."""
        try:
            self.call(method, data)
        except grpc.RpcError as error:
            return error.code()  # type: ignore[attr-defined, no-any-return]
        return grpc.StatusCode.OK
