from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loadpart_common.errors import ModelError, ModelNotFoundError
from loadpart_common.families import Family
from loadpart_common.formats.mindir.file import ModelFile
from loadpart_common.formats.mindir.format import MindIRModel
from loadpart_common.graph import Graph
from loadpart_common.store.model_store import MANIFEST, ModelStore
from loadpart_common.tensors import BATCH

if TYPE_CHECKING:
    from pathlib import Path


def read(folder: Path, name: str) -> Graph:
    with MindIRModel(folder / name / f"{name}.mindir") as file:
        return file.graph


def test_a_graph_has_layers_shapes_and_operations(exported: Path) -> None:
    graph = read(exported, "tiny")
    assert [str(spec) for spec in graph.inputs] == ["uint8[N, 32, 32, 3]"]
    assert [str(spec) for spec in graph.output_specs] == ["float32[N, 10]"]
    by_name = {layer.name: layer for layer in graph.layers}
    stem = by_name["stem/Conv2D-op0"]
    assert stem.kind == "Conv2D"
    assert stem.family is Family.CONVOLUTION
    assert stem.outputs[0].shape == (BATCH, 8, 16, 16)
    assert stem.flops == 2 * 8 * 16 * 16 * 3 * 3 * 3
    assert stem.weight_bytes == 4 * 8 * 3 * 3 * 3
    assert by_name["classify/MatMul-op0"].flops == 2 * 16 * 10
    assert max(len(cut.live) for cut in graph.cuts) == 2


def test_several_inputs_and_outputs(exported: Path) -> None:
    graph = read(exported, "two")
    assert [str(spec) for spec in graph.inputs] == ["float32[N, 6, 4, 4]", "float32[N, 2, 4, 4]"]
    assert [str(spec) for spec in graph.output_specs] == [
        "float32[N, 4, 4, 4]",
        "float32[N, 2, 4, 4]",
        "float32[N, 6, 4, 4]",
    ]
    between = [cut for cut in graph.cuts if len({value.layer < cut.index for value in graph.outputs}) == 2]
    assert between, "some cuts leave outputs on both sides"


def test_memory_effects_forbid_the_cuts_between(exported: Path) -> None:
    graph = read(exported, "in-place")
    assert len(graph.barriers) == 1
    assert 0 < len(graph.cuts) - 2 < graph.layer_count - 1


@pytest.mark.parametrize(
    ("name", "takes_batches"),
    [("tiny", True), ("two", True), ("open-batch", True), ("fixed", False), ("sliced", False)],
)
def test_batches_are_taken_only_where_that_is_right(exported: Path, name: str, takes_batches: bool) -> None:
    assert read(exported, name).takes_batches == takes_batches


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("control-flow", r"node '.*' is control flow"),
        ("counting", r"node '.*Assign.*' changes the weight '.*count'"),
        ("open-height", r"dynamic shape \[1, 3, -1, 4\]; only the leading batch may vary"),
    ],
)
def test_what_cannot_be_cut_is_refused_by_name(exported: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(exported, name)


def test_weights_are_where_the_file_says(exported: Path) -> None:
    with ModelFile(exported / "tiny" / "tiny.mindir") as file:
        names = {name.rpartition(":")[2]: name for name in file.weights}
        stem = file.read_weight(names["stem.weight"])
        assert stem.shape == (8, 3, 3, 3)
        expected = np.random.default_rng(0).standard_normal((8, 3, 3, 3)).astype(np.float32) * np.float32(0.3)
        np.testing.assert_array_equal(stem, expected)


def test_a_folder_with_nothing_but_a_file_gets_its_manifest(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "tiny", tmp_path / "mine")
    store = ModelStore(tmp_path)
    assert store.names() == ("mine",)
    first = store.open("mine").manifest
    assert (tmp_path / "mine" / MANIFEST).is_file()
    store.set_labels("mine", ("cat", "dog"))
    second = store.open("mine").manifest
    assert second.labels == ("cat", "dog")
    assert second.digest == first.digest


def test_a_changed_file_gets_a_new_manifest(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "tiny", tmp_path / "mine")
    store = ModelStore(tmp_path)
    before = store.open("mine").manifest
    (tmp_path / "mine" / "tiny.mindir").unlink()
    shutil.copy(exported / "two" / "two.mindir", tmp_path / "mine" / "other.mindir")
    after = store.open("mine")
    assert after.manifest.digest != before.digest
    assert len(after.graph.inputs) == 2


def test_a_manifest_of_an_earlier_release_is_made_anew_and_keeps_its_labels(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "tiny", tmp_path / "mine")
    (tmp_path / "mine" / MANIFEST).write_text('{"format": 1, "labels": ["cat", "dog"]}')
    assert ModelStore(tmp_path).open("mine").manifest.labels == ("cat", "dog")


@pytest.mark.parametrize("name", ["nothing", "../tiny", "", ".hidden"])
def test_an_unknown_model_lists_those_that_there_are(store: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=r"expected one of.*tiny"):
        ModelStore(store).open(name)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)])
def test_a_foreign_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.mindir"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=str(path)):
        ModelFile(path)


def test_a_foreign_manifest_is_refused(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "tiny", tmp_path / "mine")
    (tmp_path / "mine" / MANIFEST).write_text('{"format": 3}')
    with pytest.raises(ModelError, match="delete it to have it made again"):
        ModelStore(tmp_path).open("mine")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_gives_a_model_error_or_a_graph(exported: Path, tmp_path: Path, data: st.DataObject) -> None:
    good = (exported / "tiny" / "tiny.mindir").read_bytes()
    if data.draw(st.booleans(), label="cut short"):
        bad = good[: data.draw(st.integers(0, len(good) - 1), label="length")]
    else:
        where = data.draw(st.integers(0, len(good) - 1), label="position")
        bad = good[:where] + data.draw(st.binary(min_size=1, max_size=4), label="bytes") + good[where + 1 :]
    path = tmp_path / "damaged.mindir"
    path.write_bytes(bad)
    try:
        with MindIRModel(path) as file:
            graph = file.graph
    except ModelError:
        return
    assert isinstance(graph, Graph)
