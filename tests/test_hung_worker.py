"""Workers that hang or die again and again, as real processes: the daemon replaces them, and devices do without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from benchmarks.daemon import daemon, metric
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadpart.v1 import offload_pb2
from loadpart_common.errors import UnavailableError
from loadpart_device import OffloadClient
from loadpart_edge.workers.local.process import waited_seconds
from tests.support import RawClient, eventually, inputs_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.daemon import Daemon

RESTARTS = "loadpart_edge_worker_restarts_total"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[tuple[Daemon, Path]]:
    """A daemon with one worker whose health is kept current, and its log."""
    log = tmp_path_factory.mktemp("log") / "log"
    options = ("--store", str(store), "--models", "tiny", "--threads", "1", "--workers", "1")
    with (
        log.open("w") as file,
        daemon(
            *options, "--metrics-listen", "127.0.0.1:0", "--status-period-seconds", "0.05", stderr=file.fileno()
        ) as running,
    ):
        yield running, log


def workers(server: Daemon) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


@pytest.fixture(scope="module", autouse=True)
def idle(store: Path) -> Iterator[tuple[Daemon, psutil.Process]]:
    """A daemon that nobody uses, and its worker: stopped from the start, as finding it takes long."""
    options = ("--store", str(store), "--models", "tiny", "--threads", "1", "--workers", "1")
    with daemon(*options, stderr=subprocess.DEVNULL) as running:
        (worker,) = workers(running)
        worker.send_signal(signal.SIGSTOP)
        yield running, worker


def is_stopped(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:  # it was replaced
        return False


def is_serving(raw: RawClient) -> bool:
    response = health_pb2_grpc.HealthStub(raw.channel).Check(health_pb2.HealthCheckRequest(service="tiny"), timeout=10)
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def test_a_worker_that_hangs_over_a_job_is_replaced_and_no_device_waits_for_it(
    own: tuple[Daemon, Path], cache: Path
) -> None:
    server, log = own
    with (
        OffloadClient(server.target, "tiny", threads=1, cache=cache, policy=3) as client,
        OffloadClient(server.target, "tiny", threads=1, cache=cache, policy=3, hedge=False) as patient,
        RawClient(server.target) as raw,
        ThreadPoolExecutor(1) as pool,
    ):
        inputs = inputs_for(client.graph)
        assert client.wait_ready()
        expected = client.infer(*inputs).output
        assert patient.infer(*inputs).plan.location == "split"
        before = metric(server.metrics, RESTARTS)
        (worker,) = workers(server)
        worker.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        waiting = pool.submit(patient.infer, *inputs)

        in_time = patient.infer(*inputs, deadline=0.3)
        assert (in_time.plan.location, in_time.resumed, in_time.late) == ("local", True, False)

        results, statuses = [], set()
        while is_stopped(worker):
            results.append(client.infer(*inputs))
            statuses.add(client._fleet.first._load._status)
            time.sleep(0.002)  # as an application with a camera would
        assert time.monotonic() - stopped < 5
        assert {result.plan.location for result in results} == {"local"}
        assert all(result.timings.total < 0.5 for result in results)
        assert len(results) > 50
        assert 1 <= sum(result.hedged for result in results) <= 6, "the server is tried now and then"
        assert len(statuses) > 10, "statuses that come meanwhile do not close the circuit"

        result = waiting.result(10)
        assert result.plan.location == "split", "the job went to the next worker"
        assert time.monotonic() - stopped < 8
        eventually(lambda: client.infer(*inputs).plan.location == "split", "going back to the server", 5)
        for each in (*results, result, in_time):
            np.testing.assert_array_equal(each.output, expected)
        assert metric(server.metrics, RESTARTS) == before + 1
        assert "worker 0 hangs and is ended" in log.read_text()
        assert is_serving(raw)


def test_without_workers_health_status_and_refusals_say_so(own: tuple[Daemon, Path], cache: Path) -> None:
    server, log = own
    with (
        RawClient(server.target) as raw,
        OffloadClient(server.target, "tiny", threads=1, cache=cache, policy=3) as client,
    ):
        inputs = inputs_for(client.graph)
        eventually(lambda: client.infer(*inputs).plan.location == "split", "the first answer", 10)
        request = {"model": "tiny", "digest": client.digest, "cut": 0}
        stream = raw.channel.unary_stream("/loadpart.v1.Offload/WatchStatus")(b"")

        def kill_all() -> bool:
            for worker in workers(server):
                worker.kill()
            return not is_serving(raw)

        eventually(kill_all, "health says so", 10)
        with pytest.raises(UnavailableError, match="no worker is there") as refused:
            raw.infer(inputs, **request)
        assert refused.value.retry_after_seconds == 0.5
        assert any(offload_pb2.WatchStatusResponse.FromString(each).status.workers == 0 for each in stream)
        result = client.infer(*inputs)
        assert result.plan.location == "local"
        eventually(lambda: is_serving(raw), "serving again", 10)
        eventually(lambda: client.infer(*inputs).plan.location == "split", "going back to the server", 10)
        stream.cancel()
    assert "Traceback" not in log.read_text()


def test_a_worker_that_hangs_while_it_is_idle_is_found(idle: tuple[Daemon, psutil.Process]) -> None:
    """The canary finds it, 2 s after the last job, and another 2 s later it counts as hung."""
    server, worker = idle
    eventually(lambda: worker not in workers(server), "its end", 8)
    eventually(lambda: len(workers(server)) == 1, "another one", 5)
    assert workers(server)[0].status() != psutil.STATUS_STOPPED


def test_the_kernel_tells_how_long_threads_wait_for_a_core() -> None:
    core = min(os.sched_getaffinity(0))
    spin = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"]
    crowd = [subprocess.Popen(spin) for _ in range(3)]
    try:
        eventually(lambda: max(waited_seconds(crowd[0].pid).values()) > 0.1, "waiting for a core counts")
    finally:
        for process in crowd:
            process.kill()
            process.wait()
    assert waited_seconds(crowd[0].pid) == {}, "it has ended"
