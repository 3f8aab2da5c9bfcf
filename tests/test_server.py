"""The daemon, called without the SDK."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import numpy as np
import psutil
import pytest
from benchmarks.daemon import daemon, metric
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadpart.v1 import offload_pb2
from loadpart_common.engines.base import EngineSetup
from loadpart_common.errors import (
    CutError,
    InputError,
    MessageTooLargeError,
    ModelError,
    ModelMismatchError,
    ModelNotFoundError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from loadpart_common.latency.measurements import Measurements
from loadpart_common.store.manifest import Manifest
from loadpart_common.store.model_store import ModelStore
from loadpart_common.wire.framing import with_tensors
from tests.support import RAW, RawClient, eventually, run_here
from tests.toy import ToyEngine
from tests.toy_networks import BROKEN, NETWORKS, write, write_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.daemon import Daemon

    from loadpart_common.tensors import Array


@pytest.fixture
def client(server: Daemon) -> Iterator[RawClient]:
    with RawClient(server.target) as raw:
        yield raw


def workers(server: Daemon) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def good(client: RawClient, server_model: str = "tiny") -> dict[str, object]:
    return {"model": server_model, "digest": client.models()[server_model].digest, "cut": 0}


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)


def test_models_are_listed_with_the_cost_of_every_tail(client: RawClient) -> None:
    models = client.models()
    assert set(models) == set(NETWORKS)
    tiny = models["tiny"]
    assert len(tiny.tail_seconds) > 10
    assert 0 < tiny.tail_seconds[0] < 1
    assert tiny.tail_seconds[-1] == 0
    assert (0, "raw") in {(plan.cut, plan.codec) for plan in tiny.ready_plans}
    assert (tiny.format, tiny.engine) == ("toy", "toy 1, 1 thread")


def test_a_model_is_sent_whole(client: RawClient) -> None:
    stream = client.channel.unary_stream("/loadpart.v1.Offload/GetModel")
    pieces = [
        offload_pb2.GetModelResponse.FromString(data)
        for data in stream(offload_pb2.GetModelRequest(model="tiny").SerializeToString())
    ]
    manifest = Manifest.from_bytes(pieces[0].manifest, "the server")
    assert sum(len(piece.chunk) for piece in pieces) == manifest.file_bytes
    assert manifest.digest == client.models()["tiny"].digest


@pytest.mark.parametrize("batch", [1, 4])
def test_a_tail_gives_outputs(client: RawClient, batch: int) -> None:
    (output,) = client.infer([np.repeat(image(), batch, axis=0)], **good(client))
    assert output.shape == (batch, 10)
    assert output.dtype == np.float32
    assert np.isfinite(output).all()


BAD: dict[str, tuple[dict[str, object], list[np.ndarray], type[Exception], str]] = {
    "unknown model": ({"model": "nothing"}, [image()], ModelNotFoundError, "no model 'nothing': expected one of"),
    "other digest": ({"digest": "0" * 64}, [image()], ModelMismatchError, "expected digest .* got '000000000000'"),
    "cut past the end": ({"cut": 999}, [image()], CutError, "cut 999 is out of range: expected 0 to"),
    "no codec": ({"codec": ""}, [image()], InputError, "unknown codec ''"),
    "no tensors": ({}, [], InputError, r"expected 1 tensor\(s\) \(image: uint8\[N, 32, 32, 3\]\), got 0"),
    "two tensors": ({}, [image(), image()], InputError, "got 2"),
    "other dtype": ({}, [image().astype(np.float32)], InputError, "'image': expected dtype uint8, got float32"),
    "other shape": ({}, [image()[:, :8]], InputError, r"expected uint8\[N, 32, 32, 3\], got shape \[1, 8, 32, 3\]"),
    "other rank": ({}, [image()[0]], InputError, r"got shape \[32, 32, 3\]"),
    "empty batch": ({}, [image()[:0]], InputError, "expected a batch of 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_says_what_was_expected_and_harms_nobody(client: RawClient, server: Daemon, case: str) -> None:
    fields, arrays, error, message = BAD[case]
    before = [worker.pid for worker in workers(server)]
    with pytest.raises(error, match=message):
        client.infer(arrays, **(good(client) | fields))
    assert len(client.infer([image()], **good(client))) == 1
    assert [worker.pid for worker in workers(server)] == before


def test_bytes_that_are_no_message_are_a_bad_request(client: RawClient) -> None:
    for data in (b"\xff", b"\x0a\xff\xff", os.urandom(100)):
        with pytest.raises(RequestError):
            client.infer_bytes(data)
    assert client.status_of("Probe", b"\x0a\xff") is grpc.StatusCode.INVALID_ARGUMENT


def test_too_few_bytes_for_the_shape(client: RawClient) -> None:
    tensor = offload_pb2.Tensor(data_type=offload_pb2.DATA_TYPE_UINT8, shape=[1, 32, 32, 3], data=b"short")
    request = offload_pb2.InferRequest(codec="raw", tensors=[tensor], **good(client))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="tensor 0: expected 3072 bytes"):
        client.infer_bytes(request.SerializeToString())


def test_a_fixed_batch_is_told(client: RawClient) -> None:
    with pytest.raises(InputError, match=r"expected float32\[2, 3, 4\]"):
        client.infer([np.zeros((1, 3, 4), np.float32)], **good(client, "fixed"))


def test_unknown_methods_are_not_implemented(client: RawClient) -> None:
    call = client.channel.unary_unary("/loadpart.v1.Offload/Nothing")
    with pytest.raises(grpc.RpcError) as raised:
        call(b"", timeout=10)
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_probe_gives_as_many_bytes_as_asked(client: RawClient) -> None:
    request = offload_pb2.ProbeRequest(payload=b"x" * 1000, response_bytes=1_000_000)
    response = offload_pb2.ProbeResponse.FromString(client.call("Probe", request.SerializeToString()))
    assert len(response.payload) == 1_000_000
    huge = offload_pb2.ProbeRequest(response_bytes=2**31)
    assert client.status_of("Probe", huge.SerializeToString()) is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_status_comes_at_once_and_again(client: RawClient) -> None:
    stream = client.channel.unary_stream("/loadpart.v1.Offload/WatchStatus")(b"")
    statuses = [offload_pb2.WatchStatusResponse.FromString(next(stream)).status for _ in range(3)]
    stream.cancel()
    assert all(status.slow_down >= 1 for status in statuses)
    assert all(status.models_version >= 1 for status in statuses)
    assert not any(status.draining for status in statuses)


def test_health_is_per_model(client: RawClient) -> None:
    health = health_pb2_grpc.HealthStub(client.channel)
    for service in ("", "loadpart.v1.Offload", "tiny"):
        response = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as raised:
        health.Check(health_pb2.HealthCheckRequest(service="nothing"), timeout=10)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_metrics_count_what_happened(client: RawClient, server: Daemon) -> None:
    client.infer([image()], **good(client))
    with pytest.raises(ModelNotFoundError):
        client.infer([image()], **(good(client) | {"model": "nothing"}))
    requests = "loadpart_edge_requests_total"
    eventually(lambda: metric(server.metrics, requests, code="OK", method="Infer") >= 1, "counting")
    assert metric(server.metrics, requests, code="NOT_FOUND", method="Infer") >= 1
    assert metric(server.metrics, "loadpart_edge_plans_total", cut="0", codec="raw", model="tiny") >= 1
    assert metric(server.metrics, "loadpart_edge_phase_seconds_count", model="tiny", phase="tail") >= 1
    assert metric(server.metrics, "loadpart_edge_queue_length") == 0
    assert metric(server.metrics, "loadpart_edge_slow_down") >= 1
    assert metric(server.metrics, "loadpart_edge_host_slow_down", host="local") >= 1
    workers = metric(server.metrics, "loadpart_edge_workers")
    assert metric(server.metrics, "loadpart_edge_host_workers", host="local") == workers >= 1
    assert metric(server.metrics, "loadpart_edge_worker_resident_bytes", worker="0") > 1e6
    assert metric(server.metrics, "loadpart_edge_worker_restarts_total") == 0
    with urllib.request.urlopen(server.metrics, timeout=10) as response:
        text = response.read().decode()
    assert "# TYPE loadpart_edge_worker_restarts_total counter" in text
    for name in ("backlog_seconds", "cpu_utilisation", "gpu_utilisation", "active_devices", "externality_seconds"):
        assert f"loadpart_edge_{name} " in text


def test_devices_are_told_apart_by_the_id_that_they_send(client: RawClient, server: Daemon) -> None:
    """All of them share one connection, as behind a proxy."""
    before = metric(server.metrics, "loadpart_edge_active_devices")
    for device in ("first", "second", "first", "third", "x" * 1000):
        client.infer([image()], caller=device, **good(client))
    eventually(lambda: metric(server.metrics, "loadpart_edge_active_devices") == before + 4, "four devices more")


def test_cancelled_requests_leave_the_others_alone(client: RawClient) -> None:
    fields = good(client)
    request = offload_pb2.InferRequest(codec="raw", **fields)  # type: ignore[arg-type]

    data = with_tensors(request, [image()], RAW)
    call = client.channel.unary_unary("/loadpart.v1.Offload/Infer")
    futures = [call.future(data, timeout=30) for _ in range(30)]
    for future in futures[::2]:
        future.cancel()
    expected = client.infer([image()], **fields)[0]
    for future in futures[1::2]:
        assert len(future.result()) > expected.nbytes


def test_a_worker_that_dies_is_replaced_and_its_job_done(store: Path) -> None:
    with (
        daemon("--store", str(store), "--models", "tiny", stderr=subprocess.DEVNULL) as own,
        RawClient(own.target) as raw,
    ):
        fields = good(raw)
        expected = raw.infer([image()], **fields)[0]
        killed_at = math.inf

        def infer() -> list[Array]:
            while True:
                sent_at = time.monotonic()
                try:
                    return raw.infer([image()], **fields)
                except UnavailableError as error:  # only what comes while there is no worker is told to come back
                    assert sent_at > killed_at - 0.05, "the server had it before"
                    time.sleep(error.retry_after_seconds or 0.0)

        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(infer) for _ in range(50)]
            (worker,) = workers(own)
            killed_at = time.monotonic()
            worker.send_signal(signal.SIGKILL)
            for job in jobs:
                np.testing.assert_array_equal(job.result()[0], expected)
        assert workers(own) != [worker]


def test_a_full_queue_is_said_so(store: Path) -> None:
    with daemon("--store", str(store), "--models", "tiny", "--queue-limit", "1") as own, RawClient(own.target) as raw:
        fields = good(raw)
        big = np.repeat(image(), 64, axis=0)
        with ThreadPoolExecutor(16) as pool:
            jobs = [pool.submit(raw.infer, [big], **fields) for _ in range(16)]
            errors = [job.exception() for job in jobs]
        assert any(isinstance(error, OverloadedError) for error in errors)
        assert all(error is None or isinstance(error, OverloadedError) for error in errors)
        assert raw.infer([image()], **fields)


def test_a_message_over_the_limit_is_refused(store: Path) -> None:
    options = ("--store", str(store), "--models", "tiny", "--max-message-bytes", "100000")
    with daemon(*options) as own, RawClient(own.target) as raw:
        with pytest.raises(MessageTooLargeError, match="at most 100000 bytes"):
            raw.infer([np.repeat(image(), 100, axis=0)], **good(raw))
        assert raw.infer([image()], **good(raw))


def test_sigterm_finishes_what_runs_and_frees_the_port(store: Path) -> None:
    with daemon("--store", str(store), "--models", "tiny", stderr=subprocess.PIPE) as own, RawClient(own.target) as raw:
        fields = good(raw)
        children = workers(own)
        with ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(raw.infer, [np.repeat(image(), 16, axis=0)], **fields) for _ in range(8)]
            eventually(lambda: any(job.done() for job in jobs), "the first answer")
            own.process.send_signal(signal.SIGTERM)
            for job in jobs:
                error = job.exception()
                assert error is None or isinstance(error, UnavailableError)
        assert own.process.wait(30) == 0
        assert own.process.stderr is not None
        messages = own.process.stderr.read()
        own.process.stderr.close()
    assert "Traceback" not in messages
    assert "Exception ignored" not in messages
    assert not any(child.is_running() for child in children)
    port = own.target.rpartition(":")[2]
    with daemon("--store", str(store), "--models", "tiny", "--listen", f"127.0.0.1:{port}") as again:
        assert again.target == own.target


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a daemon that should not start."""
    return run_here("loadpart-edge", "serve", *arguments)


def test_a_port_in_use_is_an_error(server: Daemon, store: Path) -> None:
    for flag in ("--listen", "--metrics-listen"):
        address = server.target if flag == "--listen" else server.metrics.split("/")[2]
        listen = [] if flag == "--listen" else ["--listen", "127.0.0.1:0"]
        ended = serve("--store", str(store), *listen, flag, address)
        assert ended.returncode == 1
        assert f"cannot listen on {address}" in ended.stderr
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--listen", "nowhere"], "listen: Value error, expected HOST:PORT"),
        (["--workers", "0"], "workers: Input should be greater than or equal to 1"),
        (["--models", "nothing"], "no model 'nothing'"),
        (["--log-level", "loud"], "log_level"),
        (["--config", "/nonexistent.toml"], "no settings file at /nonexistent.toml"),
    ],
)
def test_wrong_settings_name_the_field(store: Path, arguments: list[str], message: str) -> None:
    ended = serve("--store", str(store), *arguments)
    assert ended.returncode == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    ended = serve("--store", str(tmp_path))
    assert ended.returncode == 1
    assert "loadpart-edge export" in ended.stderr


def test_a_broken_model_is_told_and_the_others_are_served(tmp_path: Path) -> None:
    write_store(tmp_path, ["tiny"])
    write("loop", tmp_path, BROKEN)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "x.mindir").write_bytes(b"not a model")
    with daemon("--store", str(tmp_path), stderr=subprocess.PIPE) as own, RawClient(own.target) as raw:
        assert set(raw.models()) == {"tiny"}
        assert raw.infer([image()], **good(raw))
        for name, message in (("foreign", "not a MindIR file"), ("loop", "node 'loop': no operator 'while'")):
            with pytest.raises(ModelError, match=message):
                raw.infer([image()], **(good(raw) | {"model": name}))
        own.stop()
        assert own.process.stderr is not None
        assert "model foreign is not served" in own.process.stderr.read()
        own.process.stderr.close()


def test_every_cut_of_every_small_network_over_the_wire(client: RawClient, store: Path) -> None:
    """Sends tensors of ones at every cut; the shapes of the outputs must be right."""
    for name, info in client.models().items():
        graph = ModelStore(store).open(name).graph
        for cut in graph.cuts[:-1]:
            batch = graph.smallest_batch
            arrays = [np.ones(spec.concrete(batch), spec.dtype) for spec in cut.specs]
            outputs = client.infer(arrays, model=name, digest=info.digest, cut=cut.index)
            assert [output.shape for output in outputs] == [
                graph.spec(value).concrete(batch) for value in graph.tail(cut.index).outputs
            ]


def test_a_damaged_latency_model_is_an_error_and_not_one_of_each_network(store: Path, tmp_path: Path) -> None:
    path = Measurements(EngineSetup(ToyEngine, 1), tmp_path).model_path
    path.write_text("damaged")
    ended = serve("--store", str(store), "--threads", "1", "--latency-folder", str(tmp_path))
    assert ended.returncode == 1
    assert str(path) in ended.stderr
    assert "is not served" not in ended.stderr
    assert "Traceback" not in ended.stderr
