"""ONNX files: read into the graph, cut on ONNX Runtime, and refused when they are odd or hostile."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from benchmarks.daemon import daemon
from onnx import TensorProto, helper, numpy_helper

from loadpart_common.engines.adoption import adopted_graph
from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.choice import EngineChoice
from loadpart_common.engines.onnxruntime.engine import OnnxRuntimeEngine
from loadpart_common.engines.openvino.engine import OpenVinoEngine
from loadpart_common.engines.registry import setups_for
from loadpart_common.engines.segment_cache import SegmentCache
from loadpart_common.errors import CutError, ModelError
from loadpart_common.families import Family
from loadpart_common.formats.onnx.format import Onnx
from loadpart_common.store.model_store import ModelStore
from loadpart_device import OffloadClient
from tests.support import RawClient
from tests.test_mindspore_engine import split, whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadpart_common.graph import Graph


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "adopted-onnx"))


@pytest.fixture(params=[OnnxRuntimeEngine, OpenVinoEngine], ids=lambda engine: engine.name)
def cache(request: pytest.FixtureRequest) -> Iterator[SegmentCache]:
    made = SegmentCache(EngineSetup(request.param, 1).start())
    yield made
    made.close()


def weight(name: str, *shape: int, dtype: Any = np.float32) -> TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape) * 0.3
    return numpy_helper.from_array(values.astype(dtype), name)


def tensor(name: str, *sizes: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(sizes))


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any] = ()) -> Path:  # type: ignore[assignment]
    path.parent.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(nodes, "network", inputs, outputs, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def image_network(path: Path, dtype: Any = np.float32) -> Path:
    """A stem, two arms that are joined, and a classifier, for any batch size."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Conv", ["image", "stem.w"], ["stem"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["stem"], ["stem.relu"]),
        helper.make_node("Conv", ["stem.relu", "left.w"], ["left"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["left"], ["left.relu"]),
        helper.make_node("Conv", ["stem.relu", "right.w"], ["right"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["left.relu", "right"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head.w"], ["scores"], transB=1),
    ]
    weights = [
        weight("stem.w", 16, 3, 3, 3, dtype=dtype), weight("left.w", 32, 16, 1, 1, dtype=dtype),
        weight("right.w", 32, 16, 3, 3, dtype=dtype), weight("head.w", 10, 32, dtype=dtype),
    ]  # fmt: skip
    return save(
        path,
        nodes,
        [tensor("image", "batch", 3, 32, 32, kind=kind)],
        [tensor("scores", "batch", 10, kind=kind)],
        weights,
    )


def graph_of(path: Path) -> Graph:
    with contextlib.closing(Onnx().open(path)) as model:
        return model.graph


def check_cuts(cache: SegmentCache, path: Path, batches: tuple[int, ...]) -> int:
    """Compares head and tail with the whole network at every cut; gives how many there are."""
    model = cache.load(path, "onnx")
    graph = model.graph
    rng = np.random.default_rng(0)
    for batch in batches:
        inputs = [rng.standard_normal(spec.concrete(batch)).astype(spec.dtype) for spec in graph.inputs]
        expected = whole(cache, model, inputs)
        assert all(np.isfinite(array).all() for array in expected)
        for cut in graph.cuts:
            for got, want in zip(split(cache, model, inputs, cut.index), expected, strict=True):
                np.testing.assert_array_equal(got, want)
    cache.unload(model)
    return len(graph.cuts)


def test_a_network_is_read_with_shapes_work_and_families(tmp_path: Path) -> None:
    graph = graph_of(image_network(tmp_path / "model.onnx"))
    assert [layer.kind for layer in graph.layers][:3] == ["Conv", "Relu", "Conv"]
    assert graph.takes_batches
    assert str(graph.inputs[0]) == "float32[N, 3, 32, 32]"
    assert str(graph.layers[0].outputs[0]) == "float32[N, 16, 15, 15]"
    assert graph.layers[0].family is Family.CONVOLUTION
    assert graph.layers[0].flops == 2 * 16 * 15 * 15 * 3 * 3 * 3
    assert graph.layers[0].weight_bytes == 4 * 16 * 3 * 3 * 3
    assert [len(cut.live) for cut in graph.cuts][3:5] == [2, 2]


# Processors compute half precision in single precision, so that no half-precision value is left within the network.
@pytest.mark.parametrize(("dtype", "cuts"), [(np.float32, 5), (np.float16, 2)])
def test_head_then_tail_is_the_whole_to_the_last_bit(
    cache: SegmentCache, tmp_path: Path, dtype: Any, cuts: int
) -> None:
    assert check_cuts(cache, image_network(tmp_path / "model.onnx", dtype), (1, 3)) >= cuts


def test_an_8_bit_network_is_cut_too(cache: SegmentCache, tmp_path: Path) -> None:
    scale = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in (("s", 0.05), ("ws", 0.01))]
    zero = numpy_helper.from_array(np.array(128, np.uint8), "z")
    weights = numpy_helper.from_array(np.random.default_rng(0).integers(-90, 90, (16, 16, 3, 3), np.int8), "w")
    nodes: list[Any] = [helper.make_node("Relu", ["image"], ["x0"])]
    for number in range(3):
        nodes += [
            helper.make_node("QuantizeLinear", [f"x{number}", "s", "z"], [f"q{number}"]),
            helper.make_node("DequantizeLinear", [f"q{number}", "s", "z"], [f"d{number}"]),
            helper.make_node("DequantizeLinear", ["w", "ws"], [f"w{number}"]),
            helper.make_node("Conv", [f"d{number}", f"w{number}"], [f"c{number}"], kernel_shape=[3, 3]),
            helper.make_node("Relu", [f"c{number}"], [f"x{number + 1}"]),
        ]
    path = save(
        tmp_path / "model.onnx", nodes, [tensor("image", "n", 16, 16, 16)], [tensor("x3", "n", 16, 10, 10)],
        [*scale, zero, weights],
    )  # fmt: skip
    assert check_cuts(cache, path, (1, 2)) >= 3


def test_what_has_no_known_size_is_a_barrier_and_control_flow_one_layer(cache: SegmentCache, tmp_path: Path) -> None:
    def branch(name: str, kind: str) -> onnx.GraphProto:
        return helper.make_graph([helper.make_node(kind, ["x"], [name])], name, [], [tensor(name, 1, 8)])

    nodes = [
        helper.make_node("Relu", ["image"], ["x"]),
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Cast", ["where"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["floats"], ["count"], keepdims=0),
        helper.make_node("Greater", ["count", "limit"], ["many"]),
        helper.make_node("If", ["many"], ["chosen"], then_branch=branch("t", "Abs"), else_branch=branch("e", "Neg")),
        helper.make_node("Mul", ["chosen", "x"], ["y"]),
    ]
    limit = numpy_helper.from_array(np.array(3, np.float32), "limit")
    path = save(tmp_path / "model.onnx", nodes, [tensor("image", 1, 8)], [tensor("y", 1, 8)], [limit])
    graph = graph_of(path)
    with pytest.raises(CutError, match="'where' \\(NonZero\\), whose output has no size"):
        graph.cut(2)
    assert graph.layers[5].kind == "If"
    assert len(graph.layers[5].inputs) == 2, "the condition, and what the branches read"
    assert check_cuts(cache, path, (1,)) >= 3


def grid_network(path: Path, *, batch: int | str = "batch", size: int | str = "size") -> Path:
    """Adds a grid that it counts from the size of its feature maps, as detectors do, and lists the places."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["features"], kernel_shape=[1, 1]),
        helper.make_node("Shape", ["features"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "two"], ["height"], axis=0),
        helper.make_node("Range", ["zero", "height", "one"], ["rows"]),
        helper.make_node("Cast", ["rows"], ["row.floats"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["row.floats", "last"], ["column"]),
        helper.make_node("Add", ["features", "column"], ["placed"]),
        helper.make_node("Gather", ["sizes", "zeros"], ["items"], axis=0),
        helper.make_node("Concat", ["items", "four", "rest"], ["flat.sizes"], axis=0),
        helper.make_node("Reshape", ["placed", "flat.sizes"], ["flat"]),
        helper.make_node("Softmax", ["flat"], ["y"], axis=1),
    ]
    numbers: dict[str, Any] = {"two": 2, "zero": 0, "one": 1, "last": [1], "zeros": [0], "four": [4], "rest": [-1]}
    weights = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in numbers.items()]
    image, y = tensor("image", batch, 3, size, size), tensor("y", "batch", 4, "places")
    return save(path, nodes, [image], [y], [weight("w", 4, 3, 1, 1), *weights])


def test_sizes_that_a_model_computes_are_found(cache: SegmentCache, tmp_path: Path) -> None:
    path = grid_network(tmp_path / "model.onnx", size=6)
    graph = graph_of(path)
    assert [str(spec) for spec in graph.output_specs] == ["float32[N, 4, 36]"]
    assert len(graph.cuts) == graph.layer_count + 1
    assert check_cuts(cache, path, (1, 3)) >= 3


def test_a_model_that_fits_one_batch_size_only_is_for_single_items(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1, 8], np.int64), "shape")
    nodes = [helper.make_node("Reshape", ["image", "shape"], ["y"])]
    path = save(tmp_path / "model.onnx", nodes, [tensor("image", "n", 2, 4)], [tensor("y", "n", 8)], [shape])
    graph = graph_of(path)
    assert not graph.takes_batches
    assert str(graph.inputs[0]) == "float32[1, 2, 4]"


def add(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadpart_edge", "add", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_model_is_added_with_its_weights_and_sizes(tmp_path: Path) -> None:
    source, store = tmp_path / "source" / "grid.onnx", tmp_path / "store"
    onnx.save(onnx.load(grid_network(source)), source, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (source.parent / "w.bin").is_file()
    (tmp_path / "names.txt").write_text("a\nb\n")
    done = add(source, "--shape", "image=N,3,5,5", "--store", store, "--labels", tmp_path / "names.txt")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("grid: float32[N, 3, 5, 5], 11 layers, 12 places to cut")
    stored = ModelStore(store).open("grid")
    assert stored.manifest.labels == ("a", "b")
    assert [str(spec) for spec in stored.graph.output_specs] == ["float32[N, 4, 25]"]
    assert sorted(path.name for path in stored.path.parent.iterdir()) == ["manifest.json", "model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "image=N,3"], "shape: the model declares image=batch,3,size,size, got N,3"),
        (["--shape", "image=N,4,5,5"], "shape: the model declares image=batch,3,size,size, got N,4,5,5"),
        (["--shape", "picture=N,3,5,5"], "the model has no input 'picture': expected one of image"),
        (["--shape", "image"], "expected --shape INPUT=N,3,320,320 or the like, got 'image'"),
        (["--shape", "image=N,3,0,5"], "expected --shape INPUT=N,3,320,320 or the like"),
        ([], "input 'image' has sizes that are not fixed"),
    ],
)
def test_what_cannot_be_added_is_refused(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = add(grid_network(tmp_path / "grid.onnx"), *arguments, "--store", tmp_path / "store")
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
    assert not any((tmp_path / "store").glob("*"))


def test_weights_are_read_from_beside_a_model_alone(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4 << 10))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    for location in ("../secret", str(tmp_path / "secret"), "link", "nothing"):
        path = save(folder / "odd.onnx", ADD, [IMAGE], [Y], [external(location)])
        done = add(path, "--store", tmp_path / "store")
        assert done.returncode != 0
        assert f"is kept in {location!r}: expected a file beside the model" in " ".join(done.stderr.split())


def test_a_file_in_the_store_is_served(tmp_path: Path) -> None:
    image_network(tmp_path / "store" / "any" / "model.onnx")
    assert ModelStore(tmp_path / "store").open("any").manifest.format == "onnx"
    assert setups_for("onnx", EngineChoice())[0].engine.name == "onnxruntime"
    image = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    with (
        daemon("--store", str(tmp_path / "store"), "--threads", "1") as server,
        OffloadClient(server.target, "any", threads=1, cache=tmp_path / "cache", policy="local") as client,
    ):
        client.wait_ready()
        expected = client.infer(image).output
        for cut in client.graph.cuts[:-1]:
            client.policy = cut.index  # type: ignore[assignment]
            result = client.infer(image)
            assert result.plan.location != "local"
            np.testing.assert_array_equal(result.output, expected)


# Odd and hostile files.

RELU = [helper.make_node("Relu", ["image"], ["y"])]
IMAGE, Y = tensor("image", 1, 8), tensor("y", 1, 8)


def external(location: str) -> TensorProto:
    placed = TensorProto(name="w", dims=[1 << 10], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 << 10))):
        placed.external_data.add(key=key, value=value)
    return placed


def future(path: Path) -> Path:
    model = onnx.load(save(path, RELU, [IMAGE], [Y]))
    model.opset_import[0].version = 99
    path.write_bytes(model.SerializeToString())
    return path


CIRCLE = [helper.make_node("Add", ["image", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
ADD = [helper.make_node("Add", ["image", "w"], ["y"])]
HOSTILE: dict[str, tuple[Any, str]] = {
    "cyclic": (lambda path: save(path, CIRCLE, [IMAGE], [tensor("b", 1, 8)]), "'a' uses 'b', which nothing before it"),
    "missing weight": (lambda path: save(path, ADD, [IMAGE], [Y]), "uses 'w', which nothing before it makes"),
    "twice": (lambda path: save(path, RELU * 2, [IMAGE], [Y]), "'y' is made twice"),
    "wrong shapes": (
        lambda path: save(path, [helper.make_node("MatMul", ["image", "w"], ["y"])], [IMAGE], [Y], [weight("w", 3, 4)]),
        "the shapes do not fit each other",
    ),
    "open height": (lambda path: save(path, RELU, [tensor("image", 1, "h")], [tensor("y", 1, "h")]), "not fixed"),
    "of the future": (future, "version 99 of ONNX's operators: expected at most"),
    "weights elsewhere": (
        lambda path: save(path, ADD, [IMAGE], [Y], [external("../../etc/passwd")]),
        "kept in another file \\('passwd'\\)",
    ),
    "no graph": (lambda path: path.write_bytes(b""), "cannot read model file"),
    "garbage": (lambda path: path.write_bytes(bytes(range(256)) * 9), "is not an ONNX file, or it is damaged"),
    "sizes like bombs": (
        lambda path: save(
            path,
            [
                helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
                helper.make_node("ReduceMax", ["zeros"], ["most"], keepdims=0),
                helper.make_node("Range", ["most", "limit", "step"], ["many"]),
                helper.make_node("Reshape", ["image", "many"], ["y"]),
            ],
            [IMAGE], [tensor("y", "any")],
            [
                numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "huge"),
                numpy_helper.from_array(np.array(1e12, np.float32), "limit"),
                numpy_helper.from_array(np.array(0, np.float32), "step"),
            ],
        ),
        "the shapes do not fit each other|not known before it runs",
    ),
    "output of nothing": (
        lambda path: save(path, RELU, [IMAGE], [tensor("w", 1, 8)], [weight("w", 1, 8)]), "does not depend on any input"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_odd_files_are_refused_with_a_reason(tmp_path: Path, name: str) -> None:
    make, reason = HOSTILE[name]
    folder = tmp_path / "store" / "odd"
    folder.mkdir(parents=True)
    make(folder / "model.onnx")
    with pytest.raises(ModelError, match=reason):
        ModelStore(tmp_path / "store").open("odd")


def test_a_daemon_serves_the_good_models_among_odd_ones(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for number, (make, _) in enumerate(HOSTILE.values()):
        (store / f"odd-{number}").mkdir(parents=True)
        make(store / f"odd-{number}" / "model.onnx")
    image_network(store / "good" / "model.onnx")
    with daemon("--store", str(store), "--threads", "1", stderr=subprocess.PIPE) as server:
        with RawClient(server.target) as raw:
            assert set(raw.models()) == {"good"}
        server.stop()
        assert server.process.stderr is not None
        with server.process.stderr as stderr:
            log = stderr.read()
    for number in range(len(HOSTILE)):
        assert f"odd-{number}" in log


def test_a_model_beyond_what_a_message_can_hold_is_read(tmp_path: Path) -> None:
    """Weights of more than 2 GB, which no library for messages parses; the file is sparse."""
    nbytes = 9 << 28
    rows = nbytes // 4 // 256

    def field(number: int, length: int) -> bytes:
        head, value = bytearray([number << 3 | 2]), length
        while value >= 0x80:
            head.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*head, value])

    small = TensorProto(name="w", dims=[256, rows], data_type=TensorProto.FLOAT).SerializeToString()
    weight_head = small + field(TensorProto.RAW_DATA_FIELD_NUMBER, nbytes)
    path = save(
        tmp_path / "large.onnx", [helper.make_node("MatMul", ["image", "w"], ["y"])], [tensor("image", "n", 256)],
        [tensor("y", "n", rows)],
    )  # fmt: skip
    model = onnx.load(path)
    rest = model.graph.SerializeToString()
    model.ClearField("graph")
    weight_field = field(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, len(weight_head) + nbytes) + weight_head
    head = field(onnx.ModelProto.GRAPH_FIELD_NUMBER, len(rest) + len(weight_field) + nbytes)
    with path.open("wb") as file:
        file.write(model.SerializeToString() + head + rest + weight_field)
        file.truncate(file.tell() + nbytes)
    graph = graph_of(path)
    assert graph.layers[0].weight_bytes == nbytes
    assert str(graph.output_specs[0]) == f"float32[N, {rows}]"
    done = add(path, "--store", tmp_path / "store")
    assert done.returncode != 0
    assert "expected at most 2 GB" in done.stderr


def test_an_operator_that_the_engine_lacks_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["image"], ["x"]), helper.make_node("Imagine", ["x"], ["y"], domain="com.other")]
    path = save(tmp_path / "model.onnx", nodes, [IMAGE], [Y])
    with contextlib.closing(Onnx().open(path)) as model, pytest.raises(ModelError, match="Imagine"):
        adopted_graph(EngineSetup(OnnxRuntimeEngine, 1), model.graph, path, "onnx", model.digest())
