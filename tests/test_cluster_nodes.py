"""A daemon with workers on three nodes of a Ray cluster, of which the tests take one away, or all, or the control."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import grpc
import numpy as np
import pytest
from benchmarks.daemon import BIN, daemon, metric
from benchmarks.nodes import nodes
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadpart.v1 import offload_pb2
from loadpart_common.errors import OverloadedError, UnavailableError
from loadpart_common.wire.framing import with_tensors
from loadpart_device import OffloadClient
from tests.support import RAW, RawClient, eventually, inputs_for, rests
from tests.toy_networks import NETWORKS, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import psutil
    from benchmarks.daemon import Daemon
    from benchmarks.nodes import Nodes

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(180)]

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
WORKER = "loadpart_edge.workers.local.main"
AGENT = "ray::Agent"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Site(NamedTuple):
    """A daemon and its cluster."""

    server: Daemon
    nodes: Nodes

    @property
    def workers(self) -> float:
        return metric(self.server.metrics, "loadpart_edge_workers")

    def fill(self, count: int) -> None:
        """Has so many nodes, with a worker on each."""
        for node in self.nodes.live[count:]:
            self.nodes.lose(node)
        if len(self.nodes.live) < count:
            self.nodes.add(count - len(self.nodes.live))
        unbuilt = partial(metric, self.server.metrics, "loadpart_edge_tails_to_build")
        eventually(lambda: self.workers == count and not unbuilt(), f"{count} workers")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """A cluster without a worker."""
    with nodes(keeps_state=True) as running:
        yield running


def served(store: Path, cluster: Nodes, *options: str) -> tuple[str, ...]:
    """Arguments of a daemon."""
    serving = ("--store", str(store), "--models", "tiny", "--threads", "1", "--status-period-seconds", "0.1")
    return (*serving, "--cluster", cluster.address, *options)


BESIDE = ("--worker-resources", "CPU=1")
"""Has a daemon's workers take what those of the site do not."""


@pytest.fixture(scope="module")
def site(store: Path, cluster: Nodes) -> Iterator[Site]:
    cluster.add(3)
    options = served(store, cluster, "--metrics-listen", "127.0.0.1:0", "--queue-limit", "8")
    with daemon(*options, environment=cluster.environment) as server:
        yield Site(server, cluster)


class Answers:
    """Requests to a daemon, four at a time, each of which is compared with the first."""

    def __init__(self, target: str, image: np.ndarray = IMAGE) -> None:
        self.raw = RawClient(target)
        message = offload_pb2.InferRequest(model="tiny", digest=self.raw.models()["tiny"].digest, codec="raw")
        self.request = with_tensors(message, [image], RAW)
        (self._expected,) = self.one()
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self.refused: list[tuple[float, UnavailableError]] = []  # with when they were begun

    def one(self) -> list[np.ndarray]:
        return self.raw.infer_bytes(self.request)

    def many(self, count: int, meanwhile: Callable[[], object]) -> None:
        """Sends so many requests, and does something when a third is answered."""
        third = threading.Semaphore(0)

        def ask(_: int) -> None:
            started = time.perf_counter()
            try:
                (output,) = self.one()
                if not np.array_equal(output, self._expected):
                    self.wrong.append("other bits")
            except UnavailableError as error:
                self.refused.append((started, error))
            except Exception as error:
                self.wrong.append(repr(error))
            self.seconds.append(time.perf_counter() - started)
            third.release()

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, number) for number in range(count)]
            for _ in range(count // 3):
                third.acquire()
            meanwhile()
            for each in asked:
                each.result()

    def close(self) -> None:
        self.raw.channel.close()


@pytest.fixture
def answers(site: Site) -> Iterator[Answers]:
    site.fill(3)
    asking = Answers(site.server.target)
    yield asking
    asking.close()


def health(raw: RawClient) -> int:
    try:
        request = health_pb2.HealthCheckRequest(service="tiny")
        return int(health_pb2_grpc.HealthStub(raw.channel).Check(request, timeout=10, wait_for_ready=True).status)
    except grpc.RpcError:
        return NOT_SERVING


def statuses(raw: RawClient) -> Iterator[offload_pb2.ServerStatus]:
    for each in raw.channel.unary_stream("/loadpart.v1.Offload/WatchStatus")(b""):
        yield offload_pb2.WatchStatusResponse.FromString(each).status


def kill_worker(site: Site) -> None:
    (worker,) = site.nodes.live[0].of(WORKER)
    worker.kill()


@pytest.mark.parametrize(
    ("what", "lose", "seen_seconds", "longest_seconds"),
    [
        ("a worker process is killed", kill_worker, 1.0, 3.0),
        ("a node is lost", lambda site: site.nodes.lose(site.nodes.live[0]), 3.0, 3.0),
        ("a node stands", lambda site: site.nodes.lose(site.nodes.live[0], signal.SIGSTOP), 5.0, 5.0),
    ],
)
def test_no_answer_is_lost_or_late_when(
    site: Site,
    answers: Answers,
    what: str,
    lose: Callable[[Site], None],
    seen_seconds: float,
    longest_seconds: float,
) -> None:
    seen: list[float] = []

    def watch() -> None:
        with RawClient(site.server.target) as raw:
            watched = statuses(raw)
            assert next(watched).workers == 3
            started = time.perf_counter()
            lose(site)
            assert any(status.workers == 2 for status in watched)
            seen.append(time.perf_counter() - started)

    answers.many(300, watch)
    print(f"{what}: longest {max(answers.seconds):.2f} s, in the status after {seen[0]:.2f} s")
    assert answers.wrong == answers.refused == []
    assert max(answers.seconds) < longest_seconds
    assert seen[0] < seen_seconds


def test_a_node_that_comes_in_place_of_another_gets_its_worker_soon(site: Site) -> None:
    site.fill(3)
    site.nodes.lose(site.nodes.live[0])
    eventually(lambda: site.workers == 2, "the loss is noticed")
    site.nodes.add()
    eventually(lambda: site.workers == 3, "the seat is filled", 8)


def test_a_node_that_is_drained_gets_no_more_jobs_and_no_other_one_is_disturbed(site: Site, answers: Answers) -> None:
    (leaving, *others) = site.nodes.live
    before = {process for node in others for process in node.of(WORKER)}
    answers.many(300, lambda: site.nodes.drain(leaving))
    assert answers.wrong == answers.refused == []
    eventually(lambda: not leaving.of(WORKER), "its worker has left", 10)
    eventually(lambda: site.workers == 2, "two are left", 5)
    assert before == {process for node in others for process in node.of(WORKER)}
    site.nodes.lose(leaving)


def test_a_node_may_have_room_for_two_workers(site: Site) -> None:
    site.fill(1)
    (node,) = site.nodes.add(1, workers=2)
    eventually(lambda: site.workers == 3, "three workers")
    assert len(node.of(WORKER)) == 2
    site.nodes.lose(node)


def test_a_site_whose_nodes_all_go_and_come_back_serves_again(site: Site, cache: Path) -> None:
    site.fill(3)
    with (
        RawClient(site.server.target) as raw,
        OffloadClient(site.server.target, "tiny", cache=cache, policy="offload") as client,
    ):
        inputs = inputs_for(client.graph)
        assert client.infer(*inputs).plan.location == "offload"
        for node in list(site.nodes.live):
            site.nodes.lose(node)
        eventually(lambda: health(raw) == NOT_SERVING, "health says so", 5)
        eventually(lambda: "no worker" in client.infer(*inputs).plan.reason, "the device is told why", 5)
        assert client.infer(*inputs).plan.location == "local"
        site.nodes.add()
        eventually(lambda: health(raw) == SERVING, "health says so", 10)
        eventually(lambda: client.infer(*inputs).plan.location == "offload", "the device offloads", 10)


def test_a_daemon_that_starts_before_its_nodes_serves_with_the_first(store: Path, site: Site, cache: Path) -> None:
    for node in list(site.nodes.live):
        site.nodes.lose(node)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{probe.getsockname()[1]}"
    own = served(store, site.nodes, *BESIDE)
    command = [BIN / "loadpart-edge", "serve", "--listen", target, *own]
    process = subprocess.Popen(command, env=os.environ | site.nodes.environment, stdout=subprocess.PIPE)
    try:
        with RawClient(target) as raw:
            models = raw.channel.unary_unary("/loadpart.v1.Offload/ListModels")
            models(b"", timeout=30, wait_for_ready=True)
            assert health(raw) == NOT_SERVING
            with OffloadClient(target, "tiny", cache=cache, policy="offload") as client:
                inputs = inputs_for(client.graph)
                result = client.infer(*inputs)
                assert result.plan.location == "local", result.plan.reason
                assert "starting" in result.plan.reason
                assert process.poll() is None
                site.nodes.add()
                eventually(lambda: health(raw) == SERVING, "health says so", 10)
                eventually(lambda: client.infer(*inputs).plan.location == "offload", "the device offloads", 10)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.communicate()


def test_jobs_of_those_who_left_never_run_and_a_full_queue_says_when_to_come_back(site: Site) -> None:
    site.fill(1)
    (worker,) = site.nodes.live[0].of(WORKER)
    ran = partial(metric, site.server.metrics, "loadpart_edge_phase_seconds_count", phase="tail")
    before = ran()
    answers = Answers(site.server.target)
    with RawClient(site.server.target) as leaving, ThreadPoolExecutor(1) as pool:
        worker.send_signal(signal.SIGSTOP)  # for less than the two seconds after which it is given up
        first = pool.submit(answers.one)
        eventually(lambda: metric(site.server.metrics, "loadpart_edge_running") == 1, "it has the job", 1)
        begun = leaving.channel.unary_unary("/loadpart.v1.Offload/Infer")
        futures = [begun.future(answers.request, timeout=20) for _ in range(8)]
        eventually(lambda: metric(site.server.metrics, "loadpart_edge_queue_length") == 8, "they wait", 1)
        assert metric(site.server.metrics, "loadpart_edge_running") == 1, "one call of an actor at a time"
        with pytest.raises(OverloadedError) as refused:
            answers.one()
        assert refused.value.retry_after_seconds > 0
        for future in futures:
            future.cancel()
        eventually(lambda: metric(site.server.metrics, "loadpart_edge_queue_length") == 0, "they are gone", 1)
        worker.send_signal(signal.SIGCONT)
        assert len(first.result(10)) == 1
        answers.one()
        eventually(lambda: ran() >= before + 3, "they are counted", 1)
        assert rests(ran)
        assert ran() == before + 3, "the first of all, the one that had begun, and the last"
    answers.close()


def test_no_answer_is_lost_while_the_control_service_is_away_and_comes_back(site: Site, answers: Answers) -> None:
    start = site.nodes.kill_control()
    answers.many(100, lambda: None)
    kill_worker(site)
    answers.many(100, start)
    assert answers.wrong == answers.refused == []
    assert max(answers.seconds) < 3
    eventually(lambda: site.workers == 3, "the worker is replaced")
    assert site.server.process.poll() is None
    site.nodes.add()
    eventually(lambda: site.workers == 4, "nodes are followed again")


def test_workers_follow_the_backlog(site: Site, tmp_path: Path) -> None:
    site.fill(3)
    write("tiny", tmp_path, NETWORKS["tiny"] | {"inputs": [["image", "uint8", [-1, 160, 160, 3]]]})  # 20 ms
    options = served(tmp_path, site.nodes, *BESIDE, "--metrics-listen", "127.0.0.1:0")
    staffed = ("--workers-min", "1", "--workers-max", "3", "--workers-down-seconds", "2")
    with daemon(*options, *staffed, environment=site.nodes.environment) as server:
        own = Site(server, site.nodes)
        assert own.workers == 1
        stopped = threading.Event()
        answers = Answers(server.target, np.zeros((1, 160, 160, 3), np.uint8))

        def go_on() -> None:
            while not stopped.is_set():
                answers.one()

        with ThreadPoolExecutor(16) as pool:
            asking = [pool.submit(go_on) for _ in range(16)]
            try:
                eventually(lambda: own.workers == 3, "two workers more", 10)
            finally:
                stopped.set()
            for each in asking:
                each.result()
        eventually(lambda: own.workers == 1, "fewer", 20)
        answers.close()


def test_the_end_of_the_daemon_under_load_loses_nothing_and_leaves_nothing(store: Path, site: Site) -> None:
    site.fill(3)
    before = [process for node in site.nodes.live for process in node.of(WORKER) + node.of(AGENT)]
    with daemon(*served(store, site.nodes, *BESIDE), environment=site.nodes.environment) as server:
        answers = Answers(server.target)
        told: list[float] = []

        def end() -> None:
            told.append(time.perf_counter())
            server.process.send_signal(signal.SIGTERM)

        answers.many(300, end)
        answers.close()
        assert server.process.wait(30) == 0
    assert answers.refused, "what comes then is refused"
    under_way = [error for begun, error in answers.refused if begun < told[0]]
    assert all("shutting down" in str(error) and error.retry_after_seconds for error in under_way), (
        "before it was begun"
    )
    assert answers.wrong == []

    def left() -> set[psutil.Process]:
        return {process for node in site.nodes.live for process in node.of(WORKER) + node.of(AGENT)} - set(before)

    eventually(lambda: not left(), "its actors are gone", 10)


def test_a_daemon_whose_own_node_is_lost_ends_and_says_why(store: Path, tmp_path: Path) -> None:
    with nodes() as own, (tmp_path / "log").open("wb") as log:
        own.add()
        with daemon(*served(store, own), environment=own.environment, stderr=log.fileno()) as server:
            own.head.processes[0].send_signal(signal.SIGSTOP)  # it would end the control service, too
            (raylet,) = own.head.of("raylet/raylet")
            raylet.kill()
            assert server.process.wait(30) == 1
    assert "cluster: the node of this machine is lost" in (tmp_path / "log").read_text()


def test_a_daemon_with_a_wrong_token_is_not_let_in(store: Path, site: Site) -> None:
    command = [BIN / "loadpart-edge", "serve", "--listen", "127.0.0.1:0", *served(store, site.nodes)]
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    ended = subprocess.run(command, env=os.environ | wrong, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "cluster: cannot connect" in ended.stderr
    assert "token" in ended.stderr
    assert ended.stdout == ""
