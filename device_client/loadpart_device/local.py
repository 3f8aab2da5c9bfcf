"""The network on the device: heads, tails and the whole, built ahead and run by the engine's thread."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from loadpart_common.engines import EngineExecutor
from loadpart_common.latency.measurements import Measurements
from loadpart_common.latency.model import Anchors, Curves
from loadpart_common.latency.slow_down import SlowDown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future
    from pathlib import Path

    from loadpart_common.engines import Engine, LoadedModel
    from loadpart_common.graph import Graph, Segment, Value
    from loadpart_common.store.model_store import StoredModel
    from loadpart_common.tensors import Array

_TIMED_RUNS = 3
_READINGS = 8  # of the slow-down

Values = dict["Value", "Array"]


class LocalRuntime:
    """Runs segments of one model on the device.

    Attributes:
        graph: The network.
    """

    def __init__(
        self,
        stored: StoredModel,
        *,
        threads: int,
        memory_limit_bytes: int,
        latency_folder: Path | None,
        on_change: Callable[[], None],
    ) -> None:
        """Starts the process's engine, in the background.

        Args:
            stored: The model.
            threads: Threads of one operator.
            memory_limit_bytes: Bound on the memory of compiled segments, weights left out.
            latency_folder: Folder with what was measured of this machine; the usual one when None.
            on_change: Called, on the engine's thread, when `ready_cuts` or `head_seconds` have changed.

        Raises:
            SettingsError: Another client of this process uses another number of threads, or what was measured of this
                machine is in a file that is damaged.
        """
        self._on_change = on_change
        measurements = Measurements(threads, latency_folder)
        self._curves = Curves(stored.manifest.graph, measurements.model())
        self._anchors = Anchors()
        for cut, seconds in measurements.profile(stored.manifest.digest).heads.items():
            self._anchors.measure(cut, seconds)
        self.graph: Graph = stored.manifest.graph
        self._executor = EngineExecutor.acquire(threads=threads, memory_limit_bytes=memory_limit_bytes)
        self._path = stored.path
        self._model: LoadedModel | None = None
        self._ready: set[int] = {0}
        self._lock = threading.Lock()
        self._slow_down = SlowDown(readings=_READINGS)
        self._head_seconds = self._curves.head_seconds(self._anchors.seconds)
        self._builds: list[Future[None]] = []
        self._unfinished: set[Future[None]] = set()  # of them

    @property
    def is_quiet(self) -> bool:
        """Whether everything that was asked for is built; building takes the interpreter and the cores."""
        return not self._unfinished

    @property
    def ready_cuts(self) -> frozenset[int]:
        """Cuts whose heads are built and timed; cut 0 needs none."""
        return frozenset(self._ready)

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
    def regressed_head_seconds(self) -> Array:
        """The same from the latency model alone, as if nothing of this network had been measured."""
        return self._curves.head_seconds({})

    def when_started(self, function: Callable[[], object]) -> None:
        """Has a function called, on the engine's thread, once MindSpore is loaded."""
        self._executor.submit(lambda _: function())

    def build(self, cuts: Iterable[int]) -> None:
        """Has the heads of cuts, and the tails that finish for them, built when the engine has nothing else to do.

        Args:
            cuts: Cuts, the most wanted first.
        """
        wanted = [cut for cut in cuts if cut not in self.ready_cuts]
        with self._lock:  # the client and its monitor may ask at the same time
            builds = [self._executor.submit(self._build, cut) for cut in wanted]
            self._builds += builds
            self._unfinished.update(builds)
        for build in builds:
            build.add_done_callback(self._unfinished.discard)

    def wait_built(self) -> None:
        """Waits until everything that was asked for so far is built.

        Raises:
            ModelError: The model file is damaged, or the engine cannot build a segment.
        """
        for build in list(self._builds):
            build.result()

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
        """Computes the outputs that a cut leaves to the server: from its tensors if that tail is built, else anew.

        Args:
            cut: The cut.
            values: The network's inputs, and what the head gave.
            batch: The batch size.
        """
        return self._executor.run(self._finish, cut, values, batch)

    def close(self) -> None:
        """Drops the model, after what is under way; what is not begun is cancelled."""
        for build in self._builds:
            build.cancel()
        self._executor.run(self._unload)
        EngineExecutor.release()

    def _unload(self, engine: Engine) -> None:
        if self._model is not None:
            engine.unload(self._model)
            self._model = None

    def _loaded(self, engine: Engine) -> LoadedModel:
        """The model; only the engine's thread asks for it."""
        if self._model is None:
            self._model = engine.load(self._path)
        return self._model

    def _build(self, engine: Engine, cut: int) -> None:
        if cut in self._ready:
            return
        model = self._loaded(engine)
        seconds = engine.idle_seconds(model, self.graph.head(cut), runs=_TIMED_RUNS)
        if cut < self.graph.whole:
            engine.segment(model, self.graph.tail(cut), self.graph.smallest_batch)
        with self._lock:
            self._anchors.measure(cut, seconds)
            self._ready.add(cut)
        self._redraw(engine)

    def _redraw(self, _: Engine) -> None:
        with self._lock:
            self._head_seconds = self._curves.head_seconds(self._anchors.seconds)
        self._on_change()

    def _run(self, engine: Engine, segment: Segment, values: Values, batch: int) -> tuple[Values, float]:
        compiled = engine.segment(self._loaded(engine), segment, batch)
        started = time.perf_counter()
        outputs = compiled.run([values[value] for value in segment.inputs])
        return dict(zip(segment.outputs, outputs, strict=True)), time.perf_counter() - started

    def _finish(self, engine: Engine, cut: int, values: Values, batch: int) -> Values:
        tail = self.graph.tail(cut)
        if engine.is_compiled(self._loaded(engine), tail, batch):
            return self._run(engine, tail, values, batch)[0]
        return self._run(engine, self.graph.head(self.graph.whole), values, batch)[0]
