from __future__ import annotations

import subprocess
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from loadpart.mindir.v1 import mindir_pb2
from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.executor import EngineExecutor
from loadpart_common.engines.mindspore import engine
from loadpart_common.engines.mindspore.denormals import flushed
from loadpart_common.engines.mindspore.engine import MindSporeEngine, MindSporeModel
from loadpart_common.engines.mindspore.zoo import NETWORKS, export
from loadpart_common.engines.mindspore.zoo.export import build
from loadpart_common.errors import SettingsError
from loadpart_common.formats.mindir.file import ModelFile
from loadpart_common.graph import Value
from tests.networks import SERVABLE
from tests.support import code, inputs_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadpart_common.engines.segment_cache import CachedModel, SegmentCache
    from loadpart_common.tensors import Array

THREADS = 1
MEMORY = 256 << 20


@pytest.fixture(scope="module")
def executor() -> Iterator[EngineExecutor]:
    acquired = EngineExecutor.acquire(EngineSetup(MindSporeEngine, THREADS), memory_limit_bytes=MEMORY)
    yield acquired
    acquired.release()


def whole(cache: SegmentCache, model: CachedModel, inputs: list[Array]) -> list[Array]:
    """The outputs of a network, run as one segment."""
    segment = model.graph.head(model.graph.layer_count)
    batch = model.graph.smallest_batch if not model.graph.takes_batches else len(inputs[0])
    outputs = cache.segment(model, segment, batch).run([inputs[value.element] for value in segment.inputs])
    return [dict(zip(segment.outputs, outputs, strict=True))[value] for value in model.graph.outputs]


def split(cache: SegmentCache, model: CachedModel, inputs: list[Array], cut: int) -> list[Array]:
    """The outputs of a network, run as a head and a tail."""
    batch = model.graph.smallest_batch if not model.graph.takes_batches else len(inputs[0])
    values = {Value(-1, index): array for index, array in enumerate(inputs)}
    for segment in (model.graph.head(cut), model.graph.tail(cut)):
        if segment.outputs:
            outputs = cache.segment(model, segment, batch).run([values[value] for value in segment.inputs])
            values.update(zip(segment.outputs, outputs, strict=True))
    return [values[value] for value in model.graph.outputs]


@pytest.mark.parametrize("name", SERVABLE)
@pytest.mark.parametrize("batch", [3])  # a batch of one is in test_mindspore.py
def test_head_then_tail_is_the_whole_to_the_last_bit(
    executor: EngineExecutor, exported: Path, name: str, batch: int
) -> None:
    def check(cache: SegmentCache) -> None:
        model = cache.load(exported / name / f"{name}.mindir", "mindir")
        if batch > 1 and not model.graph.takes_batches:
            cache.unload(model)
            return
        inputs = inputs_for(model.graph, batch)
        expected = whole(cache, model, inputs)
        for cut in model.graph.cuts:
            for got, want in zip(split(cache, model, inputs, cut.index), expected, strict=True):
                np.testing.assert_array_equal(got, want)
        cache.unload(model)

    executor.run(check)


def test_children_of_a_process_with_mindspore_keep_the_fast_runtime_of_protobuf(executor: EngineExecutor) -> None:
    program = code("from google.protobuf.internal import api_implementation; print(api_implementation.Type())")
    ended = executor.run(lambda _: subprocess.run(program, capture_output=True, text=True, check=True))
    assert ended.stdout == "upb\n"


def test_the_whole_is_what_mindspore_computes_from_the_file(executor: EngineExecutor, exported: Path) -> None:
    def check(cache: SegmentCache) -> None:
        import mindspore

        for name in ("tiny", "two", "in-place"):
            path = exported / name / f"{name}.mindir"
            model = cache.load(path, "mindir")
            inputs = inputs_for(model.graph)
            with flushed():
                result = mindspore.nn.GraphCell(mindspore.load(str(path)))(*map(mindspore.Tensor, inputs))
            expected = [each.asnumpy() for each in (result if isinstance(result, tuple) else (result,))]
            for got, want in zip(whole(cache, model, inputs), expected, strict=True):
                np.testing.assert_array_equal(got, want)
            cache.unload(model)

    executor.run(check)


def test_padding_by_a_convolution_gives_the_same_bits(
    executor: EngineExecutor, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(cache: SegmentCache) -> None:
        model = cache.load(exported / "padded" / "padded.mindir", "mindir")
        segment = model.graph.head(model.graph.layer_count)
        inputs = inputs_for(model.graph, 2)
        (got,) = model.loaded.compile(segment, 2).run(inputs)
        kinds: list[str] = []
        replacing = engine.pad_by_convolution

        def keep(written: mindir_pb2.Model) -> None:
            kinds.extend(primitive.op_type for primitive in written.primitives)

        monkeypatch.setattr(engine, "pad_by_convolution", keep)
        (want,) = model.loaded.compile(segment, 2).run(inputs)
        assert "Pad" in kinds
        np.testing.assert_array_equal(got, want)
        assert np.array_equal(np.signbit(got), np.signbit(want))
        written = mindir_pb2.Model.FromString(model.file.write_segment(segment, 2))
        replacing(written)
        kinds = [primitive.op_type for primitive in written.primitives if _is_used(written, primitive.name)]
        assert "Pad" not in kinds
        cache.unload(model)

    executor.run(check)


def _is_used(model: mindir_pb2.Model, primitive: str) -> bool:
    return any(node.op_type == f"REF::{primitive}" for node in model.graph.node)


def test_denormals_are_flushed_whichever_thread_runs_a_kernel(executor: EngineExecutor, exported: Path) -> None:
    def check(cache: SegmentCache) -> None:
        model = cache.load(exported / "sliced" / "sliced.mindir", "mindir")
        inputs = [np.full((1, 4, 4, 4), 1e-39, np.float32)]
        results = {whole(cache, model, inputs)[0].max() for _ in range(100)}
        assert results == {0.0}
        cache.unload(model)
        assert np.float32(1e-38) * np.float32(0.1) != 0, "the caller's own arithmetic still has denormals"

    executor.run(check)


def test_segments_share_weights(executor: EngineExecutor, exported: Path) -> None:
    def check(cache: SegmentCache) -> None:
        model = cache.load(exported / "tiny" / "tiny.mindir", "mindir")
        graph = model.graph
        for cut in graph.cuts[:-1]:
            cache.segment(model, graph.tail(cut.index), 1)
        assert isinstance(model.loaded, MindSporeModel)
        assert model.loaded.weight_bytes == sum(layer.weight_bytes for layer in graph.layers)
        cache.unload(model)

    executor.run(check)


def test_a_file_that_is_loaded_twice_is_in_memory_once(
    executor: EngineExecutor, exported: Path, tmp_path: Path
) -> None:
    def check(cache: SegmentCache) -> None:
        path = tmp_path / "model.mindir"
        path.write_bytes((exported / "tiny" / "tiny.mindir").read_bytes())
        first, second = cache.load(path, "mindir"), cache.load(path, "mindir")
        assert second is first
        cache.segment(first, first.graph.tail(0), 1)
        cache.unload(first)
        assert cache.is_compiled(second, second.graph.tail(0), 1), "the second user still needs the segment"
        (tmp_path / "other").write_bytes(path.read_bytes())
        (tmp_path / "other").replace(path)
        changed = cache.load(path, "mindir")
        assert changed is not second, "the file has changed, so it is loaded again"
        cache.unload(second)
        assert not cache.is_compiled(second, second.graph.tail(0), 1)
        cache.unload(changed)

    executor.run(check)


def test_many_threads_may_use_the_engine(executor: EngineExecutor, exported: Path) -> None:
    model = executor.run(lambda cache: cache.load(exported / "tiny" / "tiny.mindir", "mindir"))
    inputs = inputs_for(model.graph)
    expected = executor.run(whole, model, inputs)
    wrong: list[int] = []

    def work(number: int) -> None:
        cuts = [cut.index for cut in model.graph.cuts[number::4]]
        outputs = {cut: executor.run(split, model, inputs, cut)[0] for cut in cuts}
        wrong.extend(cut for cut, output in outputs.items() if not np.array_equal(output, expected[0]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    executor.run(lambda cache: cache.unload(model))


def test_one_process_has_one_number_of_threads(executor: EngineExecutor) -> None:
    with pytest.raises(SettingsError, match=f"threads: expected {executor.setup.threads}.*got 7"):
        EngineExecutor.acquire(EngineSetup(MindSporeEngine, 7), memory_limit_bytes=MEMORY)


def test_a_checkpoint_gives_the_weights(executor: EngineExecutor, tmp_path: Path) -> None:
    def check(_: SegmentCache) -> None:
        import mindspore

        network = build("squeezenet")
        parameter = next(iter(network.get_parameters()))
        values = np.random.default_rng(5).standard_normal(parameter.shape).astype(np.float32)
        parameter.set_data(mindspore.Tensor(values))
        mindspore.save_checkpoint(network, str(tmp_path / "mine.ckpt"))
        export("squeezenet", tmp_path / "mine.mindir", checkpoint=tmp_path / "mine.ckpt")
        with ModelFile(tmp_path / "mine.mindir") as file:
            (name,) = (name for name in file.weights if name.endswith(f":{parameter.name}"))
            np.testing.assert_array_equal(file.read_weight(name), values)

    executor.run(check)


def test_a_seed_gives_the_same_weights_again(executor: EngineExecutor, tmp_path: Path) -> None:
    def weights(_: SegmentCache, file_name: str, seed: int) -> list[Array]:
        export("squeezenet", tmp_path / file_name, seed=seed)
        with ModelFile(tmp_path / file_name) as file:
            return [file.read_weight(name) for name in file.weights]

    first, again, other = (
        executor.run(weights, name, seed) for name, seed in (("a.mindir", 3), ("b.mindir", 3), ("c.mindir", 4))
    )
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_parameters_of_the_literature(executor: EngineExecutor, name: str) -> None:
    def count(_: SegmentCache) -> int:
        return sum(
            int(np.prod(parameter.shape))
            for parameter in build(name).get_parameters()
            if not parameter.name.endswith(("moving_mean", "moving_variance"))
        )

    assert executor.run(count) == NETWORKS[name].parameters
