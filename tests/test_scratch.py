from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from loadpart_common import scratch
from loadpart_common.scratch import ScratchFolder, remove_abandoned

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "loadpart-test-"

OWNER = """
import subprocess, sys, tempfile
from loadpart_common.scratch import ScratchFolder
tempfile.tempdir = sys.argv[1]
folder = ScratchFolder("loadpart-test-")
(folder.path / "below").mkdir()
(folder.path / "below" / "file").write_text("x")
subprocess.Popen(["sleep", "3"], close_fds=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
print(folder.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty temporary folder."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@contextlib.contextmanager
def owner(place: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process with a scratch folder that is not empty; it ends with the block, or when it is killed."""
    command = [sys.executable, "-c", OWNER, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, Path(process.stdout.readline().strip())


def test_the_folder_is_the_users_own_and_goes_at_the_end(place: Path) -> None:
    with ScratchFolder(PREFIX) as folder:
        assert folder.path.parent == place
        assert folder.path.name.startswith(PREFIX)
        assert folder.path.stat().st_mode & 0o777 == 0o700
        (folder.path / "below").mkdir()
        (folder.path / "below" / "file").write_text("x")
    folder.close()
    assert not list(place.iterdir())


def test_the_folder_goes_when_the_process_ends_without_closing_it(place: Path) -> None:
    with owner(place) as (_, path):
        assert path.exists()
    assert not list(place.iterdir())


def test_the_folder_of_a_killed_process_goes_with_the_next_one(place: Path) -> None:
    """Also while a program that it started lives on."""
    with owner(place) as (process, path):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (path / "below" / "file").exists()
    other = place / "loadpart-other"
    other.mkdir()
    with ScratchFolder(PREFIX) as folder:
        assert set(place.iterdir()) == {folder.path, other}


def test_the_folder_of_a_living_process_stays(place: Path) -> None:
    with owner(place) as (_, path), ScratchFolder(PREFIX) as mine:
        remove_abandoned(PREFIX)
        assert (path / "below" / "file").exists()
        assert mine.path.exists()


def test_links_are_not_followed(place: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "file").write_text("x")
    planted = place / f"{PREFIX}planted"
    planted.symlink_to(target)
    abandoned = place / f"{PREFIX}abandoned"
    abandoned.mkdir()
    (abandoned / "link").symlink_to(target)
    (place / f"{PREFIX}file").write_text("x")
    remove_abandoned(PREFIX)
    assert (target / "file").exists()
    assert {path.name for path in place.iterdir()} == {planted.name, f"{PREFIX}file"}


def test_folders_of_other_users_stay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = place / f"{PREFIX}foreign"
    foreign.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: foreign.stat().st_uid + 1)
    remove_abandoned(PREFIX)
    assert foreign.exists()
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    remove_abandoned(PREFIX)
    assert not foreign.exists()


@pytest.mark.parametrize("moment", ["_lock", "_is_at"])
def test_a_folder_removed_before_it_was_locked_is_replaced(
    place: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Another process sweeps between the making and the locking of a folder, and is done or still at it."""
    original = getattr(scratch, moment)
    swept: list[Path] = []

    def sweep_first(*arguments: object) -> bool:
        if not swept:
            [made] = place.iterdir()
            swept.append(made)
            made.rmdir()
        return bool(original(*arguments))

    monkeypatch.setattr(scratch, moment, sweep_first)
    with ScratchFolder(PREFIX) as folder:
        assert folder.path != swept[0]
        assert list(place.iterdir()) == [folder.path]


def test_a_folder_that_another_process_has_locked_is_replaced(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = scratch._lock
    held: list[int] = []

    def locked_first(descriptor: int) -> bool:
        if not held:
            [made] = place.iterdir()
            held.append(os.open(made, os.O_RDONLY))
            assert original(held[0])
        return original(descriptor)

    monkeypatch.setattr(scratch, "_lock", locked_first)
    with ScratchFolder(PREFIX) as folder:
        assert len(list(place.iterdir())) == 2
        os.close(held[0])
        remove_abandoned(PREFIX)
        assert list(place.iterdir()) == [folder.path]


def test_many_starters_at_once_each_keep_their_own(place: Path) -> None:
    def start(_: int) -> ScratchFolder:
        folder = ScratchFolder(PREFIX)
        (folder.path / "file").write_text("x")
        return folder

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(start, range(64)))
    assert {folder.path for folder in folders} == set(place.iterdir())
    assert all((folder.path / "file").exists() for folder in folders)
    for folder in folders:
        folder.close()
    assert not list(place.iterdir())


def test_a_place_without_locks_still_has_folders(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with ScratchFolder(PREFIX) as one, ScratchFolder(PREFIX) as two:
        assert {one.path, two.path} == set(place.iterdir())
