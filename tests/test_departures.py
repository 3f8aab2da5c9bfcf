"""Clients that leave in the middle of every kind of call: nothing of them stays, and the log keeps quiet."""

from __future__ import annotations

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import psutil
import pytest
from benchmarks.daemon import daemon, metric

from loadpart.v1 import offload_pb2
from loadpart_common.wire.framing import tensor_pieces, with_tensors
from loadpart_common.wire.limits import DEVICE_KEY
from loadpart_common.wire.methods import METHODS
from tests.support import RAW, RawClient, eventually
from tests.toy_networks import NETWORKS, write, write_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.daemon import Daemon

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
MANY = 12
"""More than a device may have of the calls of the rarer kinds at a time."""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path]]:
    """A daemon with metrics, a file that takes a while to send, and hasty statuses; and its log."""
    store = write_store(tmp_path_factory.mktemp("store"), ["tiny"])
    write("large", store, NETWORKS["two"] | {"padding": "x" * (16 << 20)})
    log = tmp_path_factory.mktemp("log") / "log"
    options = ("--store", str(store), "--status-period-seconds", "0.001", "--threads", "1", "--workers", "1")
    with (
        log.open("w") as file,
        daemon(*options, "--metrics-listen", "127.0.0.1:0", "--log-level", "debug", stderr=file.fileno()) as running,
    ):
        yield running, log


def request(client: RawClient) -> bytes:
    digest = client.models()["tiny"].digest
    return with_tensors(offload_pb2.InferRequest(model="tiny", digest=digest, codec="raw"), [IMAGE], RAW)


def half(client: RawClient) -> Iterator[bytes]:
    """A request that never comes to its end."""
    tensors = b"".join(tensor_pieces(offload_pb2.InferRequest, [np.repeat(IMAGE, 1000, axis=0)], RAW))
    digest = client.models()["tiny"].digest
    message = offload_pb2.InferRequest(model="tiny", digest=digest, codec="raw", total_bytes=len(tensors))
    yield message.SerializeToString()
    yield offload_pb2.InferRequest(piece=tensors[: 1 << 20]).SerializeToString()
    time.sleep(0.2)


def call(client: RawClient, method: str, kind: str = "unary_unary") -> Any:
    path = METHODS[method].path if method in METHODS else f"/grpc.health.v1.Health/{method}"
    function = getattr(client.channel, kind)(path)
    metadata = ((DEVICE_KEY, "leaving"),)
    begin = function if kind == "unary_stream" else function.future
    return lambda data: begin(data, timeout=20, metadata=metadata)


CALLS: dict[str, Callable[[RawClient], Any]] = {
    "an inference": lambda client: call(client, "Infer")(request(client)),
    "half an inference": lambda client: call(client, "Infer", "stream_unary")(half(client)),
    "a status stream": lambda client: call(client, "WatchStatus", "unary_stream")(b""),
    "a probe": lambda client: call(client, "Probe")(
        offload_pb2.ProbeRequest(response_bytes=1 << 20).SerializeToString()
    ),
    "a list": lambda client: call(client, "ListModels")(b""),
    "a download": lambda client: call(client, "GetModel", "unary_stream")(
        offload_pb2.GetModelRequest(model="large").SerializeToString()
    ),
    "a check": lambda client: call(client, "Check")(b""),
    "a watch": lambda client: call(client, "Watch", "unary_stream")(b""),
}


STREAMS = ("a status stream", "a download", "a watch")


@pytest.mark.parametrize("way", ["cancelled", "disconnected"])
@pytest.mark.parametrize("kind", CALLS)
def test_whoever_leaves_leaves_nothing(own: tuple[Daemon, Path], kind: str, way: str) -> None:
    server, log = own
    for number in range(MANY):
        with RawClient(server.target) as leaving:
            begun = CALLS[kind](leaving)
            if number % 2 and kind in STREAMS:
                next(begun)
            elif number % 3:
                time.sleep(0.002)  # some leave at once, some a little later
            if way == "cancelled":
                begun.cancel()
    check(server, log)


def check(server: Daemon, log: Path) -> None:
    """Everything that the device held is free again, it is served as ever, and nothing was said of its leaving."""
    eventually(lambda: metric(server.metrics, "loadpart_edge_held_bytes") == 0, "the bytes are given back", 5)
    with RawClient(server.target) as client:
        data = request(client)

        def is_served() -> bool:
            try:
                return len(client.call("Infer", data, caller="leaving")) > IMAGE.shape[0]
            except grpc.RpcError:
                return False

        eventually(is_served, "being served", 5)
        for kind in STREAMS:
            eventually(lambda kind=kind: is_answered(CALLS[kind](client)), kind, 5)  # type: ignore[misc]
    told = log.read_text()
    assert "ERROR" not in told
    assert "Traceback" not in told
    assert "Exception" not in told


def is_answered(stream: Any) -> bool:
    try:
        return len(next(stream)) > 0
    except grpc.RpcError:
        return False
    finally:
        stream.cancel()


def test_jobs_of_those_who_left_are_not_run(own: tuple[Daemon, Path]) -> None:
    server, log = own
    (worker,) = psutil.Process(server.process.pid).children()
    with RawClient(server.target) as leaving, RawClient(server.target) as other, ThreadPoolExecutor(1) as pool:
        data = request(other)
        inferred = metric(server.metrics, "loadpart_edge_phase_seconds_count", phase="tail")
        worker.send_signal(signal.SIGSTOP)
        futures = [call(leaving, "Infer")(data) for _ in range(20)]
        # the worker has one of them, or was stopped over a canary and has none
        eventually(lambda: metric(server.metrics, "loadpart_edge_queue_length") >= 19, "they wait", 1.5)
        waiting = pool.submit(other.call, "Infer", data, caller="other")
        for future in futures:
            future.cancel()
        eventually(lambda: metric(server.metrics, "loadpart_edge_queue_length") == 1, "they are out of the queue", 1.5)
        worker.send_signal(signal.SIGCONT)
        assert len(waiting.result(5)) > 0
        assert metric(server.metrics, "loadpart_edge_phase_seconds_count", phase="tail") <= inferred + 2
    check(server, log)


def test_bytes_that_are_no_http_do_no_harm(own: tuple[Daemon, Path]) -> None:
    server, log = own
    host, port = server.target.rsplit(":", 1)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for data in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" * 100,
        preface,
        preface + b"\x00" * 9,
        preface + b"\xff" * 99,
    ):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(data)
    check(server, log)
