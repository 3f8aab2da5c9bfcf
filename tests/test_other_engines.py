"""MindIR networks on ONNX Runtime and OpenVINO: the translation, where each can cut, and which one is taken."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from benchmarks.daemon import daemon
from PIL import Image

from loadpart_common.engines.adoption import adopted_graph
from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.choice import EngineChoice
from loadpart_common.engines.elsewhere import run_elsewhere
from loadpart_common.engines.executor import EngineExecutor
from loadpart_common.engines.mindspore.engine import MindSporeEngine
from loadpart_common.engines.onnxruntime.engine import OnnxRuntimeEngine
from loadpart_common.engines.openvino.engine import OpenVinoEngine
from loadpart_common.engines.registry import ENGINES, setups_for
from loadpart_common.engines.segment_cache import SegmentCache
from loadpart_common.engines.speed import fastest
from loadpart_common.errors import CutError, ModelError, SettingsError
from loadpart_common.formats.mindir.format import MindIR
from loadpart_common.graph import Value
from loadpart_device import OffloadClient
from tests.networks import SERVABLE
from tests.support import inputs_for, run_here
from tests.test_mindspore_engine import split, whole
from tests.test_sandbox import pytestmark as on_recent_kernels

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadpart_common.graph import Graph
    from loadpart_common.tensors import Array

ENGINE = "onnxruntime"
SETUPS = [EngineSetup(OnnxRuntimeEngine, 1), EngineSetup(OpenVinoEngine, 1), EngineSetup(OpenVinoEngine, 2)]


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "adopted"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="module", params=SETUPS, ids=lambda setup: f"{setup.engine.name}-{setup.threads}")
def setup(request: pytest.FixtureRequest) -> EngineSetup:
    made: EngineSetup = request.param
    return made


@pytest.fixture
def cache(setup: EngineSetup) -> Iterator[SegmentCache]:
    made = SegmentCache(setup.start())
    yield made
    made.close()


def digest_of(path: Path) -> str:
    with contextlib.closing(MindIR().open(path)) as model:
        return model.digest()


def graph_of(path: Path, setup: EngineSetup) -> Graph:
    """The network as an engine can cut it."""
    with contextlib.closing(MindIR().open(path)) as model:
        return adopted_graph(setup, model.graph, path, "mindir", model.digest())


@pytest.mark.parametrize("name", SERVABLE)
def test_head_then_tail_is_the_whole_to_the_last_bit(
    cache: SegmentCache, setup: EngineSetup, exported: Path, name: str
) -> None:
    path = exported / name / f"{name}.mindir"
    graph = graph_of(path, setup)
    model = cache.load(path, "mindir", digest_of(path))
    for batch in (1, 3) if graph.takes_batches else (graph.smallest_batch,):
        inputs = inputs_for(graph, batch)
        expected = whole(cache, model, inputs)
        for cut in graph.cuts:
            for got, want in zip(split(cache, model, inputs, cut.index), expected, strict=True):
                np.testing.assert_array_equal(got, want)
    cache.unload(model)


@pytest.mark.parametrize("name", SERVABLE)
def test_outputs_are_those_of_mindspore_up_to_rounding(cache: SegmentCache, exported: Path, name: str) -> None:
    path = exported / name / f"{name}.mindir"
    model = cache.load(path, "mindir", digest_of(path))
    inputs = inputs_for(model.graph, model.graph.smallest_batch)
    executor = EngineExecutor.acquire(EngineSetup(MindSporeEngine, 1), memory_limit_bytes=256 << 20)

    def reference(other: SegmentCache) -> list[Array]:
        return whole(other, other.load(path, "mindir"), inputs)

    for got, want in zip(whole(cache, model, inputs), executor.run(reference), strict=True):
        assert got.dtype == want.dtype
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    executor.release()


def test_a_cut_within_fused_layers_is_refused(cache: SegmentCache, setup: EngineSetup, exported: Path) -> None:
    path = exported / "tiny" / "tiny.mindir"
    graph = graph_of(path, setup)
    model = cache.load(path, "mindir", digest_of(path))
    fused = sorted({cut.index for cut in model.file.graph.cuts} - {cut.index for cut in graph.cuts})
    assert fused, "a convolution and the normalisation after it are one operator"
    assert len(graph.cuts) > 4
    with pytest.raises(CutError, match="runs with it as one operator"):
        graph.cut(fused[0])
    if setup.engine is OpenVinoEngine:  # which computes there too, with other bits
        return
    with pytest.raises(CutError, match="as one operator"):
        cache.segment(model, model.file.graph.tail(fused[0]), 1)


def test_a_segment_may_run_while_its_model_is_unloaded(cache: SegmentCache, exported: Path) -> None:
    path = exported / "tiny" / "tiny.mindir"
    model = cache.load(path, "mindir", digest_of(path))
    inputs = inputs_for(model.graph, 1)
    expected = whole(cache, model, inputs)
    segment = cache.segment(model, model.graph.head(model.graph.layer_count), 1)
    unloaded = threading.Event()
    results: list[list[Array]] = []

    def run() -> None:
        while not unloaded.is_set():
            results.append(segment.run(inputs))
        results.extend(segment.run(inputs) for _ in range(20))

    running = threading.Thread(target=run)
    running.start()
    cache.unload(model)
    unloaded.set()
    running.join()
    assert all(np.array_equal(result[0], expected[0]) for result in results)


def test_an_operator_without_a_translation_is_refused_by_its_name(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.mindir"
    data = (exported / "tiny" / "tiny.mindir").read_bytes()
    path.write_bytes(data.replace(b"ReduceMean", b"ReduceOdds"))
    with pytest.raises(ModelError, match="operator ReduceOdds has no translation"):
        graph_of(path, SETUPS[0])


def test_an_engine_that_is_not_there_is_named() -> None:
    with pytest.raises(SettingsError, match=r"engine: expected one of .*onnxruntime.*, got 'tensorflow'"):
        setups_for("mindir", EngineChoice("tensorflow"))
    with pytest.raises(ModelError, match="takes no models of the format 'toy'"):
        setups_for("toy", EngineChoice(ENGINE))
    assert ENGINES[ENGINE].is_installed()


def store_with_tiny(exported: Path, folder: Path) -> Path:
    store = folder / "store"
    (store / "tiny").mkdir(parents=True)
    (store / "tiny" / "tiny.mindir").write_bytes((exported / "tiny" / "tiny.mindir").read_bytes())
    return store


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_device_and_server_never_import_mindspore(exported: Path, tmp_path: Path, engine: str) -> None:
    """From fetching the model to the answer, at every cut."""
    with daemon("--store", str(store_with_tiny(exported, tmp_path)), "--threads", "1", "--engine", engine) as server:
        done = subprocess.run(
            [sys.executable, "-c", _DEVICE, server.target, str(tmp_path / "cache"), engine],
            capture_output=True, text=True, check=True, timeout=120, env=dict(os.environ),
        )  # fmt: skip
        told = json.loads(done.stdout)
        maps = "".join((proc / "maps").read_text() for proc in _processes(server.process.pid))
    assert told["remote"] >= 2
    assert told["wrong"] == told["inexact"] == 0
    assert not told["mindspore"]
    assert "mindspore" not in maps
    assert engine in maps


_DEVICE = """
import json, sys
import numpy as np
from loadpart_device import OffloadClient
image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
remote = wrong = inexact = 0
target, cache, engine = sys.argv[1:]
with OffloadClient(target, "tiny", engine=engine, threads=1, cache=cache, policy="local") as client:
    client.wait_ready()
    expected = client.infer(image).output
    for cut in client.graph.cuts[:-1]:
        client.policy = cut.index
        result = client.infer(image)
        remote += result.plan.location != "local"
        wrong += not np.array_equal(result.output, expected)
        inexact += not result.plan.exact
print(json.dumps({"remote": remote, "wrong": wrong, "inexact": inexact, "mindspore": "mindspore" in sys.modules}))
"""


def test_other_engines_on_the_two_sides_agree_up_to_rounding_and_say_so(exported: Path, tmp_path: Path) -> None:
    arguments = ("--store", str(store_with_tiny(exported, tmp_path)), "--threads", "1", "--engine", "openvino")
    settings: dict[str, Any] = {
        "engine": ENGINE, "threads": 1, "cache": tmp_path / "cache", "hedge": False, "policy": "local",
    }  # fmt: skip
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    with daemon(*arguments) as server:
        with OffloadClient(server.target, "tiny", **settings) as client:
            client.wait_ready()
            expected = client.infer(image)
            assert expected.plan.exact
            client.policy = 0
            result = client.infer(image)
            assert result.plan.location == "offload", result.plan.reason
            assert not result.plan.exact
            assert np.abs(result.output - expected.output).max() <= 1e-5 * np.abs(expected.output).max()
        with OffloadClient(server.target, "tiny", **settings | {"exact": True, "policy": "load-aware"}) as client:
            client.wait_ready()
            result = client.infer(image)
            assert result.plan.location == "local"
            assert "its engine gives other bits: openvino" in result.plan.reason
            assert result.plan.exact


@on_recent_kernels
def test_the_process_that_adopts_is_confined(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    told = run_elsewhere("tests.elsewhere", SETUPS[0], folder, outside)
    assert told.split() == ["done", "PermissionError", "PermissionError"]


def test_accuracy_tells_other_engines_apart(exported: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    arguments = ("--store", str(store_with_tiny(exported, tmp_path)), "--threads", "1", "--engine", "openvino")
    with daemon(*arguments) as server:
        ended = run_here(
            "loadpart-device", "accuracy", "--server", server.target, "--model", "tiny", "--engine", ENGINE,
            "--threads", "1", "--cache", str(tmp_path / "cache"), "--images", str(tmp_path), "--json",
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    rows = {row["plan"]: row for row in map(json.loads, ended.stdout.splitlines())}
    assert rows["local"]["exact"]
    assert rows["local"]["worst_error"] == 0
    assert not rows["cut 0"]["exact"]
    assert 0 < rows["cut 0"]["worst_error"] < 1e-5
    assert rows["cut 0"]["agreement"] == 1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (EngineChoice("openvino", precision="int4"), r"precision: openvino offers exact or .*, got 'int4'"),
        (EngineChoice("onnxruntime", precision="bfloat16"), "precision: onnxruntime offers exact, got 'bfloat16'"),
        (EngineChoice("onnxruntime", provider="cuda"), r"provider: expected one of .*cpu.*, which this .* got 'cuda'"),
        (EngineChoice("openvino", provider="npu"), r"provider: expected one of cpu.*, which openvino sees, got 'npu'"),
        (EngineChoice("mindspore", provider="cuda"), "provider: mindspore computes on the processor alone, got 'cuda'"),
    ],
)
def test_what_an_engine_does_not_offer_is_refused(choice: EngineChoice, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        setups_for("mindir", choice)


def test_a_lower_precision_is_another_setup_with_other_bits() -> None:
    offered = [name for name in OpenVinoEngine.precisions if _offers(name)]
    setups = [setups_for("mindir", EngineChoice("openvino", threads=1, precision=name))[0] for name in offered]
    assert "exact" in offered
    assert len({setup.numerics for setup in setups}) == len(offered)
    assert all(name == "exact" or name in setup.version for name, setup in zip(offered, setups, strict=True))


def _offers(precision: str) -> bool:
    try:
        OpenVinoEngine.check_precision(precision, "")
    except SettingsError:
        return False
    return True


def test_the_fastest_engine_is_measured_once(
    exported: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = exported / "tiny" / "tiny.mindir"
    digest = digest_of(path)
    setups = setups_for("mindir", EngineChoice("auto", threads=1))
    assert [setup.engine.name for setup in setups] == ["mindspore", "onnxruntime", "openvino"]
    with caplog.at_level("INFO", "loadpart_common.engines.speed"):
        chosen = fastest(setups, path, "mindir", digest)
    assert all(f"{setup} " in caplog.text for setup in setups)
    monkeypatch.setattr("loadpart_common.engines.speed.run_elsewhere", None)  # calling it would raise
    assert fastest(setups, path, "mindir", digest) == chosen


def _processes(pid: int) -> list[Path]:
    from pathlib import Path

    import psutil

    process = psutil.Process(pid)
    return [Path(f"/proc/{each.pid}") for each in [process, *process.children(recursive=True)]]


def test_values_of_the_graph_are_named(exported: Path) -> None:
    with contextlib.closing(MindIR().open(exported / "two" / "two.mindir")) as model:
        names = model.onnx().names
        assert {Value(-1, 0), Value(-1, 1)} <= names.keys()
        assert len(names) == 2 + sum(len(layer.outputs) for layer in model.graph.layers)
