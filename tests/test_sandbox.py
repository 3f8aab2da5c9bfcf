from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from benchmarks.daemon import daemon

from tests.support import RawClient, eventually
from tests.toy_networks import write_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.daemon import Daemon

ATTEMPTS = Path(__file__).parent / "confined.py"

NOT_POSSIBLE_EVERYWHERE = {"packet socket", "vsock socket", "attribute", "memory of another", "namespace", "io_uring"}
"""What some machines refuse anybody, and so says nothing about the sandbox there."""

REFUSALS = {errno.EPERM, errno.EACCES, errno.EXDEV}  # the last when a file would move out of where it may be written

ALLOWED = {"read", "write", "rename", "move", "null device", "memory file", "thread", "program", "own signal", "socket"}
WITHOUT_LANDLOCK = "import sys; sys.modules['landlock'] = None"
WITHOUT_PYSECCOMP = "import sys; sys.modules['pyseccomp'] = None"
WITHOUT_LIBSECCOMP = "import ctypes.util as u; u.find_library = lambda name: {'c': 'libc.so.6'}.get(name)"
OLD_LANDLOCK = "import landlock; landlock.landlock_abi_version = landlock.plumbing.landlock_abi_version = lambda: 2"
NO_LANDLOCK = """
import landlock, landlock.porcelain
def fail(*_): raise landlock.SyscallError(95, "Operation not supported")
landlock.landlock_abi_version = fail
"""
TWO_THREADS = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"


def _landlock_version() -> int:
    import landlock

    try:
        return int(landlock.landlock_abi_version())
    except OSError:
        return 0


pytestmark = pytest.mark.skipif(_landlock_version() < 5, reason="the kernel's Landlock is older than version 5")


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[..., tuple[list[str], dict[str, int]]]:
    """Tries everything in a process: what it could not enforce, and the errors by name."""

    def run(before: str = "", *, confined: bool = True) -> tuple[list[str], dict[str, int]]:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        command = [sys.executable, str(ATTEMPTS), str(folder), before, str(int(confined))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        found: tuple[list[str], dict[str, int]] = tuple(json.loads(done.stdout))
        return found

    return run


def refused(errors: dict[str, int]) -> set[str]:
    return {name for name, error in errors.items() if error in REFUSALS}


def test_a_confined_process_can_do_its_work_and_nothing_else(attempt: Callable[..., Any]) -> None:
    unenforced, errors = attempt()
    assert unenforced == []
    assert {name: errors[name] for name in ALLOWED} == dict.fromkeys(ALLOWED, 0)
    assert refused(errors) == set(errors) - ALLOWED


def test_a_process_that_is_not_confined_can(attempt: Callable[..., Any]) -> None:
    _, errors = attempt(confined=False)
    assert refused(errors) <= NOT_POSSIBLE_EVERYWHERE


@pytest.mark.parametrize(
    ("before", "sentences", "possible", "refusals"),
    [
        (WITHOUT_LANDLOCK, ["files can be written anywhere: "], "create", {"internet socket", "signal"}),
        (NO_LANDLOCK, ["files can be written anywhere: "], "create", {"internet socket", "signal"}),
        (WITHOUT_PYSECCOMP, ["the network, other processes"], "internet socket", {"create", "rename outside"}),
        (WITHOUT_LIBSECCOMP, ["the network, other processes"], "internet socket", {"create", "rename outside"}),
        (
            OLD_LANDLOCK,
            ["files can be truncated anywhere", "devices can be controlled"],
            "truncate",
            {"create", "link", "take"},
        ),
        (TWO_THREADS, ["1 threads that ran before can write"], None, {"create", "internet socket in a thread"}),
    ],
    ids=["no landlock", "no Landlock in the kernel", "no pyseccomp", "no libseccomp", "old Landlock", "two threads"],
)
def test_what_cannot_be_enforced_is_told_and_the_rest_is_enforced(
    attempt: Callable[..., Any], before: str, sentences: list[str], possible: str | None, refusals: set[str]
) -> None:
    unenforced, errors = attempt(before)
    assert len(unenforced) == len(sentences)
    for got, start in zip(unenforced, sentences, strict=True):
        assert got.startswith(start)
    assert possible not in refused(errors)
    assert refusals <= refused(errors)


def status_of(path: Path) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in path.read_text().splitlines() if ":\t" in line)


def workers_of(running: Daemon) -> list[psutil.Process]:
    return psutil.Process(running.process.pid).children()


def test_a_daemon_serves_with_confined_workers_and_leaves_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    store = write_store(tmp_path / "store", ["two"])
    with (
        daemon("--store", str(store), "--threads", "1", stderr=subprocess.PIPE) as running,
        RawClient(running.target) as client,
    ):
        digest = client.models()["two"].digest
        arrays = [np.ones((1, 6), np.float32), np.ones((1, 2), np.float32)]

        def serves() -> list[Any]:
            return client.infer(arrays, model="two", digest=digest, cut=0)

        assert len(serves()) == 3
        [worker] = workers_of(running)
        for thread in Path(f"/proc/{worker.pid}/task").iterdir():
            status = status_of(thread / "status")
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        [scratch] = place.glob("loadpart-worker-*")

        os.kill(worker.pid, signal.SIGKILL)
        eventually(lambda: [each.pid for each in workers_of(running)] not in ([], [worker.pid]), "a new worker")
        assert len(serves()) == 3
        assert not scratch.exists()
        assert running.stop() == 0
        assert running.process.stderr is not None
        assert "confined" not in running.process.stderr.read()
        running.process.stderr.close()
    assert not list(place.iterdir())
