"""Workers on a Ray cluster: real nodes on this machine, which are killed, and a real daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from benchmarks.daemon import daemon
from hypothesis import given
from hypothesis import strategies as st

from loadpart_common.errors import ModelError, SettingsError
from loadpart_common.planning.plan import PlanKey
from loadpart_common.store.model_store import ModelStore
from loadpart_common.wire.framing import EncodedTensor
from loadpart_device import OffloadClient
from loadpart_edge.settings import load_settings
from loadpart_edge.workers.base import Job
from loadpart_edge.workers.cluster.messages import pack, unpack
from loadpart_edge.workers.cluster.node_store import ModelFile, NodeStore
from tests.support import eventually, inputs_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.daemon import Daemon


@pytest.fixture(scope="module")
def clustered(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose worker is on a cluster of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("node")))
        with daemon("--store", str(store), "--threads", "1", "--cluster", "auto") as running:
            yield running


def descendants(server: Daemon) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def worker_process(server: Daemon) -> psutil.Process:
    """The confined process behind the agent."""
    (found,) = worker_processes(server)
    return found


def worker_processes(server: Daemon) -> list[psutil.Process]:
    found = []
    for process in descendants(server):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended; a zombie is one, too
            if "loadpart_edge.workers.local.main" in process.cmdline():
                found.append(process)
    return found


@pytest.mark.fleet
def test_every_cut_gives_the_same_bits_on_a_node_as_on_the_device(clustered: Daemon, cache: Path) -> None:
    with OffloadClient(clustered.target, "tiny", policy="local", cache=cache) as client:
        inputs = inputs_for(client.graph)
        expected = client.infer(*inputs).output
        for cut in client.graph.cuts[:-1]:
            client.policy = cut.index
            result = client.infer(*inputs)
            assert result.plan.location != "local", result.plan.reason
            np.testing.assert_array_equal(result.output, expected)


@pytest.mark.fleet
def test_a_worker_process_that_is_killed_is_replaced_and_no_answer_is_lost(clustered: Daemon, cache: Path) -> None:
    with OffloadClient(clustered.target, "tiny", policy="offload", cache=cache) as client:
        inputs = inputs_for(client.graph)
        expected = client.infer(*inputs).output
        stopped = threading.Event()
        wrong: list[object] = []

        def go_on() -> None:
            while not stopped.is_set():
                started = time.perf_counter()
                result = client.infer(*inputs)
                if not np.array_equal(result.output, expected) or time.perf_counter() - started > 3.0:
                    wrong.append(result)

        running = threading.Thread(target=go_on)
        running.start()
        try:
            first = worker_process(clustered)
            os.kill(first.pid, signal.SIGKILL)
            eventually(lambda: [first] != worker_processes(clustered) != [], "another process")
            eventually(lambda: client.infer(*inputs).plan.location == "offload", "an answer from it")
        finally:
            stopped.set()
            running.join()
        assert not wrong
        assert worker_process(clustered).pid != first.pid


@pytest.mark.fleet
def test_the_worker_is_as_nice_as_the_daemon(clustered: Daemon) -> None:
    assert worker_process(clustered).nice() == psutil.Process(clustered.process.pid).nice()


@pytest.mark.fleet
def test_the_confined_process_does_not_know_the_token_of_the_cluster(clustered: Daemon) -> None:
    agent = worker_process(clustered).parent()
    assert agent is not None
    assert "RAY_AUTH_TOKEN" in agent.environ()
    assert not [name for name in worker_process(clustered).environ() if name.startswith("RAY_")]


@pytest.mark.fleet
def test_an_own_cluster_listens_to_this_machine_alone(clustered: Daemon) -> None:
    processes = [psutil.Process(clustered.process.pid), *descendants(clustered)]
    bound = {each.laddr.ip for process in processes for each in process.net_connections() if each.status == "LISTEN"}
    assert bound <= {"127.0.0.1", "::ffff:127.0.0.1"}


@pytest.mark.fleet
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_of_an_own_cluster_is_left_when_the_daemon_has_ended(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with daemon("--store", str(store), "--models", "tiny", "--threads", "1", "--cluster", "auto") as running:
        left = descendants(running)
        assert len(left) > 3
        running.process.send_signal(number)
        running.process.wait(30)
        _, alive = psutil.wait_procs(left, 90)  # two of Ray's tell its control service first, for which they wait
        assert alive == []


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"cluster": "somewhere"}, "cluster: expected HOST:PORT"),
        ({"worker_resources": "CPU"}, "worker_resources.*expected NAME=AMOUNT"),
        ({"worker_resources": "CPU=0"}, "worker_resources.*above 0"),
        ({"workers_min": 4, "workers_max": 2}, r"workers_max: expected workers_min \(4\) or more, got 2"),
    ],
)
def test_wrong_settings_of_a_cluster_are_refused(flags: dict[str, object], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load_settings(flags)


def test_resources_are_read_as_names_and_amounts() -> None:
    assert load_settings({"worker_resources": "CPU=4, GPU=0.5"}).worker_resources == {"CPU": 4.0, "GPU": 0.5}


TENSORS = st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=4)


@given(tensors=TENSORS, digest=st.text(max_size=8), cut=st.integers(0, 99), batch=st.integers(1, 9))
def test_a_job_comes_to_a_node_as_it_was(tensors: list[tuple[bytes, bool]], digest: str, cut: int, batch: int) -> None:
    encoded = tuple(
        EncodedTensor(np.dtype("float32"), (-1, len(data)), memoryview(data), is_raw) for data, is_raw in tensors
    )
    job = Job(digest, PlanKey(cut, "raw"), batch, encoded, "q8")
    assert unpack(pack(job)) == job


def test_a_node_keeps_only_the_file_that_was_announced(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    stored = ModelStore(store).open("tiny")
    manifest, data = stored.manifest, stored.path.read_bytes()
    model = ModelFile(manifest.digest, manifest.format, len(data), "numpy", "exact", "")
    node = NodeStore()
    for *pieces, last in ([data[:-1], b""], [data[:-1], b"x", b""], [data, b"x"]):
        for piece in pieces:
            node.receive(model, piece)
        with pytest.raises(ModelError, match=rf"model {manifest.digest[:12]}\.\.\.: expected .* got"):
            node.receive(model, last)
        assert node.find(manifest.digest) is None
    node.receive(model, data[:-1])
    assert node.find(manifest.digest) is None, "and what came to no end is dropped"
    for piece in (*(data[start : start + 100] for start in range(0, len(data), 100)), b""):
        node.receive(model, piece)
    found = node.find(manifest.digest)
    assert found is not None
    assert found.path.read_bytes() == data
    assert list(found.path.parent.parent.iterdir()) == [found.path.parent], "nothing is left over"
