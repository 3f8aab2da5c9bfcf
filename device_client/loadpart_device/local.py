"""The network on the device: heads, tails and the whole, built ahead and run by the process's engine."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from loadpart_common.engines.executor import EngineExecutor
from loadpart_common.engines.timing import idle_seconds
from loadpart_common.errors import ClientClosedError
from loadpart_common.latency.anchors import Anchors
from loadpart_common.latency.curves import Curves
from loadpart_common.latency.measurements import Measurements
from loadpart_common.latency.slow_down import SlowDown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.engines.segment_cache import CachedModel, SegmentCache
    from loadpart_common.graph import Graph, Segment, Value
    from loadpart_common.store.model_store import StoredModel
    from loadpart_common.tensors import Array

_TIMED_RUNS = 3
_READINGS = 8  # of the slow-down

Values = dict["Value", "Array"]


class LocalRuntime:
    """Runs segments of one model on the device. Thread-safe.

    Attributes:
        graph: The network.
        setup: The engine, and how it computes.
    """

    def __init__(
        self,
        stored: StoredModel,
        setup: EngineSetup,
        *,
        memory_limit_bytes: int,
        latency_folder: Path | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts the process's engine, in the background.

        Args:
            stored: The model, with the cuts that the engine has.
            setup: The engine, and how it computes.
            memory_limit_bytes: Bound on the memory of compiled segments, weights left out.
            latency_folder: Folder with what was measured of this machine; the usual one when None.
            on_change: Called, on the engine's thread, when `is_ready` or `head_seconds` have changed.

        Raises:
            SettingsError: Another client of this process uses another number of threads, or what was measured of this
                machine is in a file that is damaged.
        """
        self._on_change = on_change
        self.graph: Graph = stored.graph
        self.setup = setup
        self._stored = stored
        measurements = Measurements(setup, latency_folder)
        self._curves = Curves(self.graph, measurements.model())
        self._anchors: Anchors[int] = Anchors()
        for cut, seconds in measurements.profile(stored.manifest.digest).heads.items():
            self._anchors.measure(self.graph.cut(cut).index, seconds)
        self._executor = EngineExecutor.acquire(setup, memory_limit_bytes=memory_limit_bytes)
        self._model: CachedModel | None = None
        self._is_closed = False
        self._ready: set[int] = set()
        self._lock = threading.RLock()
        self._slow_down = SlowDown(readings=_READINGS)
        self._head_seconds = self._curves.head_seconds(self._anchors.seconds)
        self._builds: list[Future[None]] = []
        self._unfinished: set[Future[None]] = set()  # of them

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was asked for is built; building takes the interpreter and the cores."""
        return not self._unfinished

    def is_ready(self, cut: int) -> bool:
        """Whether the head of a cut is built and timed; cut 0 has no head."""
        return cut == 0 or cut in self._ready

    @property
    def slow_down(self) -> float:
        """Measured over predicted seconds of the latest heads; 1 when there was none for some seconds."""
        with self._lock:
            return self._slow_down.value

    @property
    def head_seconds(self) -> Array:
        """Idle seconds of each cut's head on this device, one item, shape (layers + 1,)."""
        return self._head_seconds

    @property
    def modelled_head_seconds(self) -> Array:
        """The same from the latency model alone, as if nothing of this network had been measured."""
        return self._curves.head_seconds({})

    def when_started(self, function: Callable[[], object]) -> None:
        """Has a function called once the engine is started; see `EngineExecutor.when_started`."""
        self._executor.when_started(function)

    def build(self, cuts: Iterable[int]) -> None:
        """Has the heads of cuts, and the tails that finish for them, built when the engine has nothing else to do.

        Args:
            cuts: Cuts, the most wanted first.
        """
        with self._lock:  # the client and its edges may ask at the same time
            builds = [self._executor.submit(self._build, cut) for cut in cuts if not self.is_ready(cut)]
            self._await(builds)

    def when_idle(self, function: Callable[[], object], *, is_awaited: bool = False) -> None:
        """Has a function called on the engine's thread when that has nothing else to do.

        Args:
            function: The function.
            is_awaited: Whether `wait_built` waits for it.
        """
        with self._lock:
            call = self._executor.submit(lambda _: function())
            if is_awaited:
                self._await([call])

    def _await(self, builds: Sequence[Future[Any]]) -> None:
        self._builds += builds
        self._unfinished.update(builds)
        for build in builds:
            build.add_done_callback(self._unfinished.discard)

    def wait_built(self) -> None:
        """Waits until everything that was asked for so far is built.

        Raises:
            ModelError: The model file is damaged, or the engine cannot start or build a segment.
            ClientClosedError: The client was closed meanwhile.
        """
        try:
            for build in list(self._builds):
                build.result()
        except CancelledError:
            raise _closed() from None

    def head(self, cut: int, inputs: Values, batch: int) -> tuple[Values, float]:
        """Runs the head of a cut; gives what it computes and the seconds that it ran."""
        outputs, seconds = self._executor.run(self._run, self.graph.head(cut), inputs, batch)
        with self._lock:
            if (idle := self._anchors.seconds.get(cut)) is not None:
                self._slow_down.record(idle * batch, seconds)
                if self._anchors.observe(cut, seconds / batch):
                    self._executor.submit(self._redraw)
        return outputs, seconds

    def finish(self, cut: int, values: Values, batch: int) -> Values:
        """Computes here the outputs that a cut leaves to the server.

        From the head's outputs if that tail is built, otherwise with the whole network.

        Args:
            cut: The cut.
            values: The network's inputs, and what the head gave.
            batch: The batch size.
        """
        return self._executor.run(self._finish, cut, values, batch)

    def can_resume(self, cut: int, batch: int) -> bool:
        """Whether `finish` goes on from the head's outputs."""
        return cut in self._ready and batch == self.graph.smallest_batch

    def start_to_finish(self, cut: int, values: Values, batch: int) -> Future[Values]:
        """Begins what `finish` does, on another thread; cancelling helps only before it has begun."""
        return self._executor.start(self._finish, cut, values, batch)

    def close(self) -> None:
        """Drops the model, after what is under way; what is not begun is cancelled or raises `ClientClosedError`."""
        with self._lock:
            self._is_closed = True
            builds = list(self._builds)
        for build in builds:
            build.cancel()
        if self._model is not None:
            self._executor.run(self._unload)
        self._executor.release()

    def _unload(self, cache: SegmentCache) -> None:
        with self._lock:
            if self._model is not None:
                cache.unload(self._model)
                self._model = None

    def _loaded(self, cache: SegmentCache) -> CachedModel:
        model = self._model
        if model is None:
            with self._lock:
                if self._is_closed:
                    raise _closed()
                if self._model is None:
                    self._model = cache.load(
                        self._stored.path, self._stored.manifest.format, self._stored.manifest.digest
                    )
                model = self._model
        return model

    def _build(self, cache: SegmentCache, cut: int) -> None:
        if cut in self._ready:
            return
        model = self._loaded(cache)
        seconds = idle_seconds(cache, model, self.graph.head(cut), runs=_TIMED_RUNS)
        if cut < self.graph.layer_count:
            cache.segment(model, self.graph.tail(cut), self.graph.smallest_batch)
        with self._lock:
            self._anchors.measure(cut, seconds)
            self._ready.add(cut)
        self._redraw(cache)

    def _redraw(self, _: SegmentCache) -> None:
        with self._lock:
            self._head_seconds = self._curves.head_seconds(self._anchors.seconds)
        self._on_change()

    def _run(self, cache: SegmentCache, segment: Segment, values: Values, batch: int) -> tuple[Values, float]:
        compiled = cache.segment(self._loaded(cache), segment, batch)
        started = time.perf_counter()
        outputs = compiled.run([values[value] for value in segment.inputs])
        return dict(zip(segment.outputs, outputs, strict=True)), time.perf_counter() - started

    def _finish(self, cache: SegmentCache, cut: int, values: Values, batch: int) -> Values:
        tail = self.graph.tail(cut)
        if not cache.is_compiled(self._loaded(cache), tail, batch):
            return self._run(cache, self.graph.head(self.graph.layer_count), values, batch)[0]
        outputs, seconds = self._run(cache, tail, values, batch)
        with self._lock:
            self._slow_down.record(float(self._head_seconds[-1] - self._head_seconds[cut]) * batch, seconds)
        return outputs


def _closed() -> ClientClosedError:
    return ClientClosedError("the client was closed meanwhile: make another one")
