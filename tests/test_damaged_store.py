"""Stores with files that are damaged, replaced, no files at all, or planted by somebody else."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from benchmarks.daemon import daemon
from grpc_health.v1 import health_pb2, health_pb2_grpc

from loadpart_common.engines.base import EngineSetup
from loadpart_common.errors import ModelError, OffloadError, RequestError
from loadpart_common.files import open_regular
from loadpart_common.formats.registry import FORMATS
from loadpart_common.store.model_store import MANIFEST, ModelStore
from loadpart_device import OffloadClient
from tests.support import RawClient, eventually, run_here
from tests.toy import ToyEngine
from tests.toy_networks import NETWORKS, write, write_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.daemon import Daemon

IMAGE = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
FORGED = "x\n2026-01-01 00:00:00,000 INFO daemon: forged\x1b[31m"

# The same shapes as `tiny`, and other outputs.
OTHER = {**NETWORKS["tiny"], "layers": [[*layer[:2], sorted(layer[2])] for layer in NETWORKS["tiny"]["layers"]]}
OTHER["layers"][5] = ["affine5", "affine", [[3, 0]]]


def planted(folder: Path, path: Path) -> None:
    """A model whose manifest is something else."""
    write("tiny", folder.parent, NETWORKS["tiny"])
    (folder.parent / "tiny").rename(folder)
    (folder / "tiny.toy").rename(folder / "model.toy")
    path.unlink(missing_ok=True)


def with_manifest(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """A good model with a bad manifest."""

    def damage(folder: Path) -> None:
        planted(folder, folder / MANIFEST)
        make(folder / MANIFEST)

    return damage


def with_model(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """A folder with a bad model file."""

    def damage(folder: Path) -> None:
        folder.mkdir()
        make(folder / "model.toy")

    return damage


DAMAGE: dict[str, Callable[[Path], None]] = {
    "manifest-that-is-none": with_manifest(lambda path: path.write_bytes(b"\xff{")),
    "manifest-deep": with_manifest(lambda path: path.write_bytes(b"[" * 1_000_000)),
    "manifest-infinite": with_manifest(
        lambda path: path.write_text('{"format": 3, "name": "", "model_format": "", "digest": "", "file_bytes": 1e999}')
    ),
    "manifest-folder": with_manifest(Path.mkdir),
    "manifest-pipe": with_manifest(os.mkfifo),
    "manifest-link": with_manifest(lambda path: path.symlink_to("/etc/hostname")),
    "model-empty": with_model(lambda path: path.write_bytes(b"")),
    "model-deep": with_model(lambda path: path.write_bytes(b"[" * 1_000_000)),
    "model-without-a-graph": with_model(lambda path: path.write_text("{}")),
    "model-folder": with_model(Path.mkdir),
    "model-pipe": with_model(os.mkfifo),
    "model-device": with_model(lambda path: path.symlink_to("/dev/null")),
    "model-link": with_model(lambda path: path.symlink_to(path.parent.parent / "tiny" / "tiny.toy")),
    "model-link-to-nothing": with_model(lambda path: path.symlink_to(path.parent / "nothing")),
    FORGED: with_model(lambda path: path.write_bytes(b"")),
}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one good model, and every kind of damage beside it."""
    folder = tmp_path_factory.mktemp("damaged")
    outside = write("tiny", tmp_path_factory.mktemp("outside")).parent
    for name, damage in DAMAGE.items():
        damage(folder / name)
    (folder / "folder-link").symlink_to(outside)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "file").write_bytes(b"")
    return write_store(folder, ["tiny"])


def test_whatever_else_is_in_the_store_the_good_model_is_served(damaged: Path, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+") as log:
        with daemon("--store", str(damaged), stderr=log.fileno()) as own, RawClient(own.target) as raw:
            good = {"digest": raw.models()["tiny"].digest, "cut": 0}
            assert set(raw.models()) == {"tiny"}
            assert raw.infer([IMAGE], model="tiny", **good)
            for name in DAMAGE:
                with pytest.raises(ModelError):
                    raw.infer([IMAGE], model=name, **good)
            for name in ("folder-link", "loop", "file", "..", "../tiny", "tiny/", "/", "", "x" * 10_000):
                with pytest.raises(RequestError):
                    raw.infer([IMAGE], model=name, **good)
        log.seek(0)
        lines = log.read().splitlines()
    assert all(
        re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) (daemon|worker)", each) for each in lines
    )
    assert sum("is not served" in line for line in lines) == len(DAMAGE)
    assert not any("\x1b" in line or line.endswith("forged") for line in lines)


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_model_that_is_asked_for_by_name_ends_the_start(damaged: Path, name: str) -> None:
    """And no file is waited for, followed, or read without a bound."""
    with pytest.raises(OffloadError):
        ModelStore(damaged).open(name)
    ended = run_here("loadpart-edge", "serve", "--store", str(damaged), "--models", name, "--listen", "127.0.0.1:0")
    assert ended.returncode == 1
    assert ended.stderr.startswith("loadpart-edge: ")
    assert ended.stderr.count("\n") == 1
    assert "\x1b" not in ended.stderr


def test_a_file_beyond_all_bounds_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    with open_regular(path, 5) as file:
        assert file.read() == b"12345"
    with pytest.raises(OSError, match="at most 4 bytes"):
        open_regular(path, 4)


def test_names_in_a_store_are_listed_safely(damaged: Path) -> None:
    ended = run_here("loadpart-edge", "models", "--store", str(damaged))
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout
    assert not any(line.startswith("2026-01-01") for line in ended.stdout.splitlines())


def test_a_format_that_throws_spoils_one_model_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def throw(_: Path) -> None:
        raise ZeroDivisionError("of the format")

    store = ModelStore(write_store(tmp_path, ["tiny"]))
    monkeypatch.setattr(FORMATS["toy"], "open", throw)
    with pytest.raises(ModelError, match="of the format"):
        store.open("tiny")


def test_a_store_that_cannot_be_written_to_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(30, "Read-only file system")

    store = ModelStore(write_store(tmp_path, ["tiny"]))
    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    assert store.open("tiny").manifest.name == "tiny"
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["tiny.toy"]


# A store that changes while it is served.


CHANGES: dict[str, Callable[[Path], object]] = {
    "replaced": lambda path: path.with_name("new").replace(path),
    "written-over": lambda path: path.write_bytes(path.with_name("new").read_bytes()),
    "removed": lambda path: shutil.rmtree(path.parent),
}


def variant(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """The same network as another file."""
    return {**document, "name": name}


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Path, Path]]:
    """A daemon with a store of its own, the store, and the daemon's log."""
    folder, log = tmp_path_factory.mktemp("changing"), tmp_path_factory.mktemp("log") / "log"
    write_store(folder, ["two"])
    for name in CHANGES:
        write(name, folder, variant(name, OTHER)).rename(folder / name / "new")
        write(name, folder, variant(name, NETWORKS["tiny"]))
    options = ("--store", str(folder), "--threads", "1", "--status-period-seconds", "0.1")
    with log.open("w") as file, daemon(*options, stderr=file.fileno()) as own:
        yield own, folder, log


def kill_worker(server: Daemon) -> None:
    (worker,) = psutil.Process(server.process.pid).children()
    worker.send_signal(signal.SIGKILL)
    eventually(
        lambda: worker.pid not in {each.pid for each in psutil.Process(server.process.pid).children()}, "its end"
    )


def is_serving(raw: RawClient, name: str) -> bool:
    response = health_pb2_grpc.HealthStub(raw.channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_has_been_changed_is_never_run(
    changing: tuple[Daemon, Path, Path], tmp_path: Path, name: str
) -> None:
    server, store, log = changing
    with (
        RawClient(server.target) as raw,
        OffloadClient(server.target, name, threads=1, cache=tmp_path / "cache", policy=0, hedge=False) as client,
    ):
        fields: dict[str, Any] = {"model": name, "digest": raw.models()[name].digest, "cut": 0}
        (expected,) = raw.infer([IMAGE], **fields)
        assert is_serving(raw, name)
        CHANGES[name](store / name / f"{name}.toy")
        eventually(lambda: not is_serving(raw, name), "the change is seen")
        assert is_serving(raw, "two")
        assert is_serving(raw, "")
        assert f"model {name}: its file has been changed" in log.read_text()
        np.testing.assert_array_equal(raw.infer([IMAGE], **fields)[0], expected)
        kill_worker(server)
        for _ in range(3):
            np.testing.assert_array_equal(client.infer(IMAGE).output, expected)

        def is_refused() -> bool:
            try:
                np.testing.assert_array_equal(raw.infer([IMAGE], **fields)[0], expected)
            except OffloadError as error:
                return isinstance(error, ModelError)
            return False

        eventually(is_refused, "the refusal by the new worker", 10)
        client._fleet.first.availability.succeeded()
        result = client.infer(IMAGE)
        assert (result.plan.location, result.resumed) == ("local", True)
        assert "the model file has been" in result.plan.reason
        np.testing.assert_array_equal(result.output, expected)
        two = [np.zeros((1, 6), np.float32), np.zeros((1, 2), np.float32)]
        assert len(raw.infer(two, model="two", digest=raw.models()["two"].digest, cut=0)) == 3
    with pytest.raises(ModelError, match="the model file"):
        OffloadClient(server.target, name, threads=1, cache=tmp_path / "other")


def test_the_files_that_replace_others_here_give_other_outputs(tmp_path: Path) -> None:
    outputs = []
    for document in (NETWORKS["tiny"], OTHER):
        with contextlib.closing(FORMATS["toy"].open(write("tiny", tmp_path, document))) as model:
            graph = model.graph
            loaded = EngineSetup(ToyEngine, 1).start().load(model, None)  # type: ignore[arg-type]
            (output,) = loaded.compile(graph.head(graph.layer_count), 1).run([IMAGE])
            outputs.append(output)
    assert outputs[0].shape == outputs[1].shape
    assert not np.array_equal(*outputs)
