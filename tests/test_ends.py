"""How the daemon ends: in order, at any moment, in a hurry, and by force."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil
import pytest
from benchmarks.daemon import BIN
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadpart.v1 import offload_pb2
from loadpart_common.errors import UnavailableError
from loadpart_edge.workers.base import WorkerOptions
from loadpart_edge.workers.local.process import LocalWorkers
from tests.support import RawClient, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.daemon import Daemon

IMAGE = np.zeros((1, 32, 32, 3), np.uint8)
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

IN_TIME = 2.0
"""Seconds within which a daemon that is told to end at once does, whatever its workers do."""


class Started(NamedTuple):
    """A daemon in a session and with a temporary folder of its own."""

    process: subprocess.Popen[str]
    temporary: Path

    @property
    def left(self) -> list[psutil.Process | Path]:
        """Its processes that still run, itself included, and its temporary files."""
        processes = []
        for each in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getpgid(each.pid) == self.process.pid and each.status() != psutil.STATUS_ZOMBIE:
                    processes.append(each)
        return [*processes, *self.temporary.iterdir()]

    def wait_ready(self) -> str:
        """Waits until it is ready; gives its address."""
        assert self.process.stdout is not None
        found = re.search(r"listening=(\S+)", self.process.stdout.readline())
        assert found is not None
        return found[1]

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def end(self) -> tuple[float, int, str]:
        """Waits for its end; gives how long that took, the exit code, and the log."""
        started = time.monotonic()
        log = self.process.communicate(timeout=30)[1]
        return time.monotonic() - started, self.process.returncode, log


@contextlib.contextmanager
def started(store: Path, temporary: Path, *options: str) -> Iterator[Started]:
    temporary.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [BIN / "loadpart-edge", "serve", "--listen", "127.0.0.1:0", "--store", store, "--models", "tiny", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(temporary), "LOADPART_EDGE_THREADS": "1", "LOADPART_EDGE_WORKERS": "1"},
        start_new_session=True,
    )
    own = Started(process, temporary)
    try:
        yield own
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture
def own(store: Path, tmp_path: Path) -> Iterator[Started]:
    with started(store, tmp_path / "tmp") as running:
        yield running


def statuses(raw: RawClient) -> Iterator[offload_pb2.ServerStatus]:
    for each in raw.channel.unary_stream("/loadpart.v1.Offload/WatchStatus")(b""):
        yield offload_pb2.WatchStatusResponse.FromString(each).status


def health(raw: RawClient) -> Iterator[int]:
    request = health_pb2.HealthCheckRequest(service="tiny")
    for each in health_pb2_grpc.HealthStub(raw.channel).Watch(request):
        yield each.status


def test_a_signal_at_any_moment_of_the_start_leaves_nothing(store: Path, server: Daemon, tmp_path: Path) -> None:
    """To the daemon alone, as a supervisor sends it, and to all of its processes, as a terminal does."""

    def end_at(number: int, moment: float) -> str:
        with started(store, tmp_path / str(number)) as own:
            time.sleep(moment)  # the moment is what is tested
            name = "SIGINT" if number % 2 else "SIGTERM"
            (os.killpg if number % 4 < 2 else os.kill)(own.process.pid, signal.Signals[name])
            seconds, code, log = own.end()
            told = f"{name} after {moment:.2f} s: exit code {code} after {seconds:.2f} s, left {own.left}, log:\n{log}"
            is_quiet = not re.search("Traceback|Exception|ERROR|WARNING", log)
            is_good = seconds < IN_TIME and code in (0, -signal.Signals[name]) and is_quiet and not own.left
            return "" if is_good else told

    moments = [server.ready_seconds * share for share in np.linspace(0.01, 1.0, 10)]
    with ThreadPoolExecutor(2) as pool:
        assert not [told for told in pool.map(end_at, range(10), moments) if told]


def test_a_worker_whose_start_is_cancelled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    options = WorkerOptions(threads=1, max_message_bytes=1, segment_memory_bytes=1, log_level="info")

    def descriptors() -> set[str]:
        paths = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return {os.readlink(path) for path in paths if os.path.lexists(path)}

    before = descriptors()

    async def cancel_a_start() -> None:
        starting = asyncio.create_task(LocalWorkers(lambda _: pytest.fail("no model"), options, workers=1).start(0))
        await asyncio.sleep(0)  # the process runs, and the start does not know of it yet
        eventually(lambda: any(tmp_path.iterdir()), "the worker's folder", 10)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(cancel_a_start())
    eventually(lambda: not descriptors() - before, "the descriptors to be closed", 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_busy", [True, False], ids=["over a job", "idle"])
def test_a_second_signal_ends_it_at_once_although_a_worker_hangs(own: Started, is_busy: bool) -> None:
    with RawClient(own.wait_ready()) as raw, ThreadPoolExecutor(2) as pool:
        digest = raw.models()["tiny"].digest
        (worker,) = own.workers()
        worker.send_signal(signal.SIGSTOP)
        if is_busy:
            waiting = [pool.submit(raw.infer, [IMAGE], model="tiny", digest=digest, cut=0) for _ in range(2)]
            assert any(status.backlog_seconds > 0 for status in statuses(raw)), "the worker has one job of the two"
        healths = health(raw)
        assert next(healths) == SERVING
        own.process.send_signal(signal.SIGINT)
        assert next(healths) == NOT_SERVING, "it drains"
        own.process.send_signal(signal.SIGINT)
        seconds, code, log = own.end()
        assert seconds < IN_TIME
        assert (code, own.left) == (0, [])
        assert not re.search("Traceback|Exception|ERROR", log), log
        if is_busy:
            assert all(job.exception() is not None for job in waiting)


def test_draining_tells_health_first_refuses_new_requests_and_finishes_those_it_has(own: Started) -> None:
    with RawClient(own.wait_ready()) as raw, ThreadPoolExecutor(2) as pool:
        fields: dict[str, object] = {"model": "tiny", "digest": raw.models()["tiny"].digest, "cut": 0}
        (worker,) = own.workers()
        worker.send_signal(signal.SIGSTOP)
        watched = statuses(raw)
        waiting = [pool.submit(raw.infer, [IMAGE], **fields) for _ in range(2)]
        assert any(status.backlog_seconds > 0 for status in watched), "the worker has one job of the two"
        healths = health(raw)
        assert next(healths) == SERVING
        own.process.send_signal(signal.SIGTERM)
        assert next(healths) == NOT_SERVING
        assert any(status.draining for status in watched)
        with pytest.raises(UnavailableError, match="shutting down") as refused:
            raw.infer([IMAGE], **fields)
        assert refused.value.retry_after_seconds == 2.0
        assert not any(job.done() for job in waiting)
        worker.send_signal(signal.SIGCONT)
        assert all(job.result(10)[0].shape == (1, 10) for job in waiting)
        _, code, log = own.end()
    assert (code, own.left) == (0, [])
    assert not re.search("Traceback|Exception|ERROR", log), log


def test_what_a_killed_daemon_leaves_goes_with_the_next_one(own: Started, store: Path) -> None:
    own.wait_ready()
    (worker,) = own.workers()
    worker.send_signal(signal.SIGSTOP)  # a worker that hangs would not notice that the daemon is gone
    assert all(path.name.startswith("loadpart-worker-") for path in own.temporary.iterdir())
    own.process.kill()
    own.process.wait()
    eventually(lambda: not any(isinstance(each, psutil.Process) for each in own.left), "the end of the worker", 5)
    with started(store, own.temporary) as other:
        other.wait_ready()
        assert len(list(own.temporary.iterdir())) == 1
        other.process.send_signal(signal.SIGTERM)
        assert other.end()[1] == 0
    assert own.left == []
