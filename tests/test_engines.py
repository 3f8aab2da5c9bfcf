"""The parts that all engines share: the segment cache, the executor, the registries."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.choice import EngineChoice
from loadpart_common.engines.executor import EngineExecutor
from loadpart_common.engines.registry import ENGINES, setups_for
from loadpart_common.engines.segment_cache import SegmentCache
from loadpart_common.engines.timing import idle_seconds
from loadpart_common.errors import ModelError, SettingsError
from loadpart_common.formats.registry import FORMATS, format_of
from tests.support import eventually, inputs_for
from tests.toy import ToyEngine
from tests.toy_networks import write

if TYPE_CHECKING:
    from pathlib import Path

MEMORY = 1 << 20


class OneThreadEngine(ToyEngine):
    """A toy engine that checks that only one thread uses it."""

    name = "one-thread"
    needs_own_thread = threads_fixed_for_process = True


def cache_of(limit: int = MEMORY) -> SegmentCache:
    return SegmentCache(EngineSetup(ToyEngine, 1).start(), limit)


def test_a_file_that_is_loaded_twice_is_in_memory_once(tmp_path: Path) -> None:
    cache, path = cache_of(), write("tiny", tmp_path)
    first, second = cache.load(path, "toy"), cache.load(path, "toy")
    assert second is first
    cache.segment(first, first.graph.tail(0), 1)
    cache.unload(first)
    assert cache.is_compiled(second, second.graph.tail(0), 1), "the second user still needs the segment"
    cache.unload(second)
    assert not cache.is_compiled(second, second.graph.tail(0), 1)
    assert cache.load(path, "toy") is not second


def test_the_least_recently_used_segments_are_dropped_beyond_the_limit(tmp_path: Path) -> None:
    cache = cache_of(limit=3000)  # three segments of the toy engine
    model = cache.load(write("tiny", tmp_path), "toy")
    tails = [model.graph.tail(cut) for cut in range(4)]
    for tail in tails[:3]:
        cache.segment(model, tail, 1)
    assert cache.segment(model, tails[0], 1) is cache.segment(model, tails[0], 1)
    cache.segment(model, tails[3], 1)
    assert [cache.is_compiled(model, tail, 1) for tail in tails] == [True, False, True, True]


def test_idle_seconds_are_those_of_one_item(tmp_path: Path) -> None:
    cache = cache_of()
    model = cache.load(write("fixed", tmp_path), "toy")
    assert 0 < idle_seconds(cache, model, model.graph.tail(0), runs=2) < 1
    assert cache.is_compiled(model, model.graph.tail(0), 2)


def test_an_engine_with_a_thread_of_its_own_is_used_there_only() -> None:
    executor = EngineExecutor.acquire(EngineSetup(OneThreadEngine, 1), memory_limit_bytes=MEMORY)
    seen = {executor.run(lambda _: threading.get_ident()) for _ in range(3)}
    seen.add(executor.submit(lambda _: threading.get_ident()).result(5))
    assert len(seen) == 1
    assert threading.get_ident() not in seen
    with pytest.raises(ZeroDivisionError):
        executor.run(lambda _: 1 // 0)
    with pytest.raises(SettingsError, match="threads: expected 1, as for the other clients of this process, got 2"):
        EngineExecutor.acquire(EngineSetup(OneThreadEngine, 2), memory_limit_bytes=MEMORY)
    executor.release()


def test_urgent_calls_go_before_background_work() -> None:
    executor = EngineExecutor.acquire(EngineSetup(OneThreadEngine, 1), memory_limit_bytes=MEMORY)
    order: list[str] = []
    begun, hold = threading.Event(), threading.Event()

    def occupy(_: SegmentCache) -> bool:
        begun.set()
        return hold.wait(5)

    first = executor.submit(occupy)
    assert begun.wait(5)
    later = executor.submit(lambda _: order.append("background"))
    urgent = threading.Thread(target=lambda: executor.run(lambda _: order.append("urgent")))
    urgent.start()
    eventually(lambda: executor._calls.qsize() == 2, "both wait")
    hold.set()
    assert first.result(5)
    later.result(5)
    urgent.join()
    assert order == ["urgent", "background"]
    executor.release()


def test_any_other_engine_runs_on_the_callers_thread() -> None:
    executor = EngineExecutor.acquire(EngineSetup(ToyEngine, 1), memory_limit_bytes=MEMORY)
    assert executor.run(lambda _: threading.get_ident()) == threading.get_ident()
    assert executor.submit(lambda _: threading.get_ident()).result(5) != threading.get_ident()
    other = EngineExecutor.acquire(EngineSetup(ToyEngine, 2), memory_limit_bytes=MEMORY)
    assert other is not executor
    assert EngineExecutor.acquire(EngineSetup(ToyEngine, 1), memory_limit_bytes=MEMORY) is executor
    for each in (executor, executor, other):
        each.release()


def test_the_registries(tmp_path: Path) -> None:
    assert next(iter(ENGINES)) == "mindspore"
    assert setups_for("toy", EngineChoice())[0].engine is ToyEngine
    assert [setup.engine.name for setup in setups_for("mindir", EngineChoice())] == ["mindspore"]
    with pytest.raises(ModelError, match="no engine takes models of the format 'unknown'"):
        setups_for("unknown", EngineChoice())
    with pytest.raises(
        SettingsError, match="engine: expected one of mindspore, onnxruntime, openvino, toy, got 'unknown'"
    ):
        ENGINES["unknown"]
    assert format_of(tmp_path / "a.toy") is FORMATS["toy"]
    assert format_of(tmp_path / "a.mindir") is FORMATS["mindir"]
    assert format_of(tmp_path / "a.txt") is None
    with pytest.raises(SettingsError, match="engine: toy has no networks to calibrate with"):
        ToyEngine.write_random_network(0, tmp_path)


def test_head_then_tail_is_the_whole(tmp_path: Path) -> None:
    cache = cache_of()
    model = cache.load(write("tiny", tmp_path), "toy")
    graph, inputs = model.graph, inputs_for(model.graph)
    (whole,) = cache.segment(model, graph.head(graph.layer_count), 1).run(inputs)
    for cut in graph.cuts[1:-1]:
        head = graph.head(cut.index)
        values = dict(zip(head.outputs, cache.segment(model, head, 1).run(inputs), strict=True))
        (output,) = cache.segment(model, graph.tail(cut.index), 1).run([values[value] for value in cut.live])
        np.testing.assert_array_equal(output, whole)
