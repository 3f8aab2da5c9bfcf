"""The SDK, against a real daemon."""

from __future__ import annotations

import pickle
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from benchmarks.daemon import daemon, metric

from loadpart_common.planning.plan import PlanKey
from loadpart_common.store.model_store import ModelStore
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device import (
    ClientClosedError,
    CutError,
    InputError,
    ModelMismatchError,
    ModelNotFoundError,
    OffloadClient,
    SettingsError,
)
from loadpart_device.edges.connection import Connection, Tail
from loadpart_device.edges.edge import Edge
from loadpart_device.edges.probe_budget import ProbeBudget
from tests.support import eventually, inputs_for
from tests.toy_networks import NETWORKS, write, write_store

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.daemon import Daemon

NOBODY = "127.0.0.1:1"


@pytest.fixture
def connect(server: Daemon, cache: Path) -> Any:
    def make(model: str = "tiny", **options: Any) -> OffloadClient:
        options = {"threads": 1, "cache": cache, "hedge": False} | options  # tests of hedging ask for it
        return OffloadClient(options.pop("target", server.target), model, **options)

    return make


@pytest.mark.parametrize("name", NETWORKS)
def test_every_cut_gives_what_the_device_computes_alone(connect: Any, name: str) -> None:
    with connect(name, policy="local") as local:
        batch = local.graph.smallest_batch
        inputs = inputs_for(local.graph, batch)
        expected = local.infer(*inputs)
        assert expected.plan.location == "local"
        for cut in local.graph.cuts:
            with connect(name, policy=cut.index) as client:
                result = client.infer(*inputs)
            where = "local" if cut.index == local.graph.layer_count else "offload" if cut.index == 0 else "split"
            assert (result.plan.cut, result.plan.location) == (cut.index, where)
            for got, want in zip(result.outputs, expected.outputs, strict=True):
                np.testing.assert_array_equal(got, want)


def test_timings_add_up(connect: Any) -> None:
    with connect(policy=6) as client:
        client.wait_ready()
        timings = client.infer(*inputs_for(client.graph)).timings
    parts = [timings.decide, timings.head, timings.encode, timings.network, timings.queue, timings.tail]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= timings.total
    assert timings.total < 5


def test_load_aware_chooses_by_what_it_knows(connect: Any) -> None:
    with connect() as client:
        assert client.wait_ready()
        result = client.infer(*inputs_for(client.graph))
        assert result.plan.predicted_seconds is not None
        assert 0 < result.plan.predicted_seconds < 1
        assert "Mbit/s" in result.plan.reason
        assert result.to_json()["plan"]["reason"] == result.plan.reason


@pytest.mark.parametrize("policy", ["load-aware", "local", 3])
def test_a_result_can_be_sent_to_another_process(connect: Any, policy: str | int) -> None:
    with connect(policy=policy) as client:
        client.wait_ready()
        result = client.infer(*inputs_for(client.graph))
    again = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(again.output, result.output)
    assert again.plan.reason == result.plan.reason
    assert again.timings == result.timings


def test_a_changed_network_is_measured_anew(connect: Any) -> None:
    with connect() as client:
        assert client.wait_ready()
        before = client.link
        client.network_changed()
        reading = client.link
        assert reading is None or reading != before, "the old estimate is no longer used"
        assert client.wait_ready(), "the probes are sent without waiting for the usual pause"
        assert client.link is not None
        assert client.infer(*inputs_for(client.graph)).plan.predicted_seconds is not None


@pytest.mark.parametrize("policy", ["load-aware", "bandwidth-only", "local", "offload", 3])
def test_batches(connect: Any, policy: str | int) -> None:
    with connect(policy=policy) as client:
        images = inputs_for(client.graph, batch=3)[0]
        together = client.infer(images).output
        assert together.shape == (3, 10)
        alone = np.concatenate([client.infer(images[i : i + 1]).output for i in range(3)])
        np.testing.assert_allclose(together, alone, rtol=1e-4)


def test_a_model_is_fetched_once(server: Daemon, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    for _ in range(2):
        with OffloadClient(
            server.target, "tiny", threads=1, hedge=False, cache=tmp_path, on_progress=lambda *at: seen.append(at)
        ) as client:
            digest = client.digest
    assert seen
    assert seen[-1][0] == seen[-1][1]
    assert len(seen) == len({at for at, _ in seen})
    assert [path.name for path in tmp_path.iterdir()] == [f"tiny-{digest[:16]}"]


def test_a_damaged_cache_is_fetched_again(server: Daemon, tmp_path: Path) -> None:
    with OffloadClient(server.target, "tiny", threads=1, hedge=False, cache=tmp_path) as client:
        expected = client.infer(*inputs_for(client.graph)).output
    (file,) = tmp_path.glob("*/*.toy")
    file.write_bytes(file.read_bytes()[:1000])
    with OffloadClient(server.target, "tiny", threads=1, hedge=False, cache=tmp_path) as client:
        np.testing.assert_array_equal(client.infer(*inputs_for(client.graph)).output, expected)


def test_without_a_server_the_device_computes_alone(connect: Any) -> None:
    with connect(policy="local") as local:
        expected = local.infer(*inputs_for(local.graph)).output
    with connect(target=NOBODY, connect_timeout=0.2, policy="offload") as client:
        result = client.infer(*inputs_for(client.graph))
        np.testing.assert_array_equal(result.output, expected)
        assert result.plan.location == "local"
        assert "no answer from 127.0.0.1:1" in result.plan.reason
        assert not client.wait_ready(0.1)


def test_without_a_server_and_a_cached_model_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="not cached, and the server cannot be asked: no answer from"):
        OffloadClient(NOBODY, "tiny", threads=1, cache=tmp_path, connect_timeout=0.2)


def test_a_server_that_dies_is_left_alone_and_found_again(store: Path, cache: Path) -> None:
    options = ("--store", str(store), "--models", "tiny")
    with daemon(*options, stderr=subprocess.DEVNULL) as first:
        client = OffloadClient(first.target, "tiny", threads=1, hedge=False, cache=cache, policy=3)
        assert client.wait_ready()
        inputs = inputs_for(client.graph)
        expected = client.infer(*inputs)
        assert expected.plan.location == "split"
        first.process.kill()
        first.process.wait()
    with client:
        result = client.infer(*inputs)
        assert result.plan.location == "local"
        np.testing.assert_array_equal(result.output, expected.output)
        port = first.target.rpartition(":")[2]
        with daemon(*options, "--listen", f"127.0.0.1:{port}", stderr=subprocess.DEVNULL):
            eventually(lambda: client.infer(*inputs).plan.location == "split", "offloading again")


def test_a_server_that_drains_is_not_asked(store: Path, cache: Path) -> None:
    with (
        daemon("--store", str(store), "--models", "tiny", stderr=subprocess.DEVNULL) as own,
        OffloadClient(own.target, "tiny", threads=1, hedge=False, cache=cache, policy="offload") as client,
    ):
        assert client.infer(*inputs_for(client.graph)).plan.location == "offload"
        own.stop()
        assert client.infer(*inputs_for(client.graph)).plan.location == "local"


def test_a_deadline_is_kept_by_finishing_alone(connect: Any) -> None:
    with connect(policy=3, deadline=1e-4) as client:
        client.wait_ready()
        started = time.perf_counter()
        result = client.infer(*inputs_for(client.graph))
        assert time.perf_counter() - started < 5
        assert result.plan.location == "local"
        assert "local after cut 3" in result.plan.reason


def test_another_file_under_the_same_name_is_told(tmp_path: Path) -> None:
    folder = write_store(tmp_path / "store", ["tiny"])
    options = ("--store", str(folder), "--models", "tiny")
    with daemon(*options, stderr=subprocess.DEVNULL) as own:
        client = OffloadClient(own.target, "tiny", threads=1, hedge=False, cache=tmp_path / "cache", policy="offload")
        port = own.target.rpartition(":")[2]
    with client:
        write("tiny", folder, NETWORKS["two"])
        assert ModelStore(folder).open("tiny").manifest.digest != client.digest
        with daemon(*options, "--listen", f"127.0.0.1:{port}", stderr=subprocess.DEVNULL):

            def mismatched() -> bool:
                try:
                    client.infer(*inputs_for(client.graph))
                except ModelMismatchError:
                    return True
                return False

            eventually(mismatched, "the mismatch")


def test_many_threads_and_clients_at_once(connect: Any) -> None:
    with connect() as tiny, connect("two", policy=3) as two, ThreadPoolExecutor(8) as pool:
        tiny.wait_ready()
        inputs = {client: inputs_for(client.graph) for client in (tiny, two)}
        expected = {client: client.infer(*inputs[client]).outputs for client in (tiny, two)}
        jobs = [(client, pool.submit(client.infer, *inputs[client])) for client in (tiny, two) * 40]
        for client, job in jobs:
            for got, want in zip(job.result().outputs, expected[client], strict=True):
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": "nothing"}, ModelNotFoundError, "serves no model 'nothing': expected one of"),
        ({"policy": "clever"}, SettingsError, "policy: expected one of load-aware, .* got 'clever'"),
        ({"policy": 999}, CutError, "cut 999 is out of range"),
        ({"policy": -1}, CutError, "cut -1 is out of range"),
        ({"target": ""}, SettingsError, "server: expected HOST:PORT"),
        ({"metrics_listen": "nowhere"}, SettingsError, "metrics_listen: expected HOST:PORT"),
    ],
)
def test_wrong_options_name_the_field(
    connect: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    threads = threading.active_count()
    with pytest.raises(error, match=message):
        connect(**options)
    assert threading.active_count() <= threads + 1


def test_transfers_while_segments_are_built_tell_nothing_of_the_link(server: Daemon, store: Path) -> None:
    quiet = False
    edge = Edge(Connection(Endpoint(server.target), 1 << 28), ProbeBudget(), is_quiet=lambda: quiet)
    info = edge.connection.list_models(10)["tiny"]
    image = np.zeros((1, 32, 32, 3), np.uint8)
    graph = ModelStore(store).open("tiny").graph
    reply = edge.connection.infer(Tail.of(graph, "tiny", info.digest, PlanKey(0, "raw")), [image], 10)
    edge.link.record(0, 0, 0.001)
    edge.reply_received(reply._replace(sent_bytes=1 << 20, network_seconds=2.0))
    assert edge.link.reading is None
    assert edge.load is not None
    quiet = True
    edge.reply_received(reply._replace(sent_bytes=1 << 20, network_seconds=0.5))
    assert edge.link.reading is not None
    assert edge.link.reading.megabits == pytest.approx(16.8, rel=0.01)
    edge.connection.close()


@pytest.mark.parametrize("policy", ["local", "offload"])
def test_wrong_inputs_are_refused_before_anything_runs(connect: Any, policy: str) -> None:
    with connect(policy=policy) as client:
        for array, message in (
            (np.zeros((1, 32, 32, 3), np.float32), "expected dtype uint8, got float32"),
            (np.zeros((1, 16, 32, 3), np.uint8), r"expected uint8\[N, 32, 32, 3\]"),
        ):
            with pytest.raises(InputError, match=message):
                client.infer(array)
        with pytest.raises(InputError, match=r"expected 1 tensor\(s\)"):
            client.infer()
    with pytest.raises(ClientClosedError, match="the client was closed before this call"):
        client.infer(np.zeros((1, 32, 32, 3), np.uint8))


def test_a_message_over_the_limit_is_not_sent(connect: Any) -> None:
    with connect(policy="offload", max_message_bytes=100_000) as client:
        result = client.infer(*inputs_for(client.graph, batch=100))
        assert result.plan.location == "local"
        assert "the server takes no 307200 bytes at a time, but 100000" in result.plan.reason
        assert client.infer(*inputs_for(client.graph)).plan.location == "offload"


def test_metrics_of_the_device(connect: Any, server: Daemon) -> None:
    with connect(metrics_listen="127.0.0.1:0") as client:
        client.wait_ready()
        client.infer(*inputs_for(client.graph))
        with pytest.raises(InputError):
            client.infer()
        url = f"http://{client.metrics_address}/metrics"
        assert metric(url, "loadpart_device_inferences_total", error="", model="tiny") == 1
        assert metric(url, "loadpart_device_inferences_total", error="BAD_INPUT", model="tiny") == 1
        assert metric(url, "loadpart_device_plans_total") == 1
        assert metric(url, "loadpart_device_phase_seconds_count", model="tiny", phase="total") == 1
        assert metric(url, "loadpart_device_uplink_bytes_per_second", server=server.target) > 0
        assert metric(url, "loadpart_device_round_trip_seconds", server=server.target) > 0
