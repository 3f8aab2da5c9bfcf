"""The MindSpore engine: one a process, used by one thread at a time."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart_common.engines.mindspore import protobuf_loader
from loadpart_common.engines.mindspore.denormals import flushed
from loadpart_common.errors import ModelError, SettingsError
from loadpart_common.formats.mindir import ModelFile, Program, write_segment

if TYPE_CHECKING:
    from collections.abc import Collection

    from loadpart_common.graph import Graph, Segment
    from loadpart_common.tensors import Array

_FIXED_BYTES = 1 << 20
"""What a compiled segment takes beside the values that flow through it."""


_PAUSE_SECONDS = 0.02

_configured_threads: int | None = None  # MindSpore takes the number once in a process's life


class LoadedModel:
    """A model in an engine: its program, and its weights, read when first needed and shared by all its segments.

    Attributes:
        program: What the file says.
        users: How many have loaded it and not unloaded it yet.
    """

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self._file = ModelFile(path)
        self.program = Program(self._file.structure)
        self.users = 0
        self._weights: dict[str, Any] = {}

    @property
    def graph(self) -> Graph:
        """The format-neutral graph."""
        return self.program.graph

    @property
    def identity(self) -> tuple[int, ...]:
        """What tells the file apart from others, and from what it was before a change."""
        return self._file.identity

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that have been read."""
        return sum(weight.nbytes for weight in self._weights.values())

    def weight(self, name: str) -> Any:
        """A weight as a MindSpore tensor; always the same one for a name."""
        if name not in self._weights:
            self._weights[name] = self._engine.tensor(self._file.read_weight(name))
        return self._weights[name]

    def weights_read(self) -> None:
        """Lets go of the file's pages once a segment has its weights."""
        self._file.release_pages()

    def close(self) -> None:
        """Drops the weights."""
        self._weights.clear()
        self._file.close()


class CompiledSegment:
    """A segment that is ready to run for one batch size.

    Attributes:
        nbytes: An estimate of the memory that it holds, weights left out.
    """

    def __init__(self, engine: Engine, cell: Any, nbytes: int) -> None:
        self._engine = engine
        self._cell = cell
        self.nbytes = nbytes

    def run(self, arrays: list[Array]) -> list[Array]:
        """Runs the segment.

        Args:
            arrays: The segment's inputs, in its order, of the shapes that it was compiled for.

        Returns:
            Its outputs, in its order.
        """
        with flushed():
            result = self._cell(*[self._engine.tensor(array) for array in arrays])
        outputs = result if isinstance(result, tuple) else (result,)
        return [output.asnumpy() for output in outputs]


class Engine:
    """Compiles and runs segments of models.

    Compiled segments are kept, the least recently used ones dropped when their memory passes the limit. Not
    thread-safe: MindSpore dead-locks when two threads compile or run; give an engine one thread (`EngineExecutor`).
    """

    def __init__(
        self, *, threads: int, memory_limit_bytes: int = 1 << 30, cores: Collection[int] | None = None
    ) -> None:
        """Starts MindSpore, and binds the calling thread, and all that MindSpore starts, to as many cores as threads.

        MindSpore's own setting bounds the threads of one operator only. How it shares out an operator's work, and with
        it the last bit of a result, depends on the cores that it sees, so both sides must see equally many.

        Args:
            threads: Threads that one operator may use.
            cores: Cores to use; the first so many of those allowed by default.
            memory_limit_bytes: Bound on the estimated memory of compiled segments, weights left out.
        """
        os.sched_setaffinity(0, cores or sorted(os.sched_getaffinity(0))[:threads])
        os.environ.setdefault("GLOG_v", "3")  # errors only; must be set before the import
        protobuf_loader.install()
        import mindspore

        self._mindspore = mindspore
        mindspore.set_context(mode=mindspore.GRAPH_MODE)
        mindspore.set_device("CPU")
        _set_threads(mindspore, threads)
        self.threads = threads
        self._memory_limit_bytes = memory_limit_bytes
        self._models: dict[tuple[int, ...], LoadedModel] = {}  # by identity
        self._compiled: OrderedDict[tuple[int, int, int, int], CompiledSegment] = OrderedDict()
        self._folder = tempfile.TemporaryDirectory(prefix="loadpart-segments-")

    def load(self, path: Path) -> LoadedModel:
        """Opens a MindIR file; whoever opens the same one again shares its weights and segments.

        Raises:
            ModelError: It is damaged, foreign, or holds what cannot be cut.
        """
        opened = LoadedModel(self, path)
        model = self._models.setdefault(opened.identity, opened)
        if model is not opened:
            opened.close()
        model.users += 1
        return model

    def unload(self, model: LoadedModel) -> None:
        """Gives a model back; after its last user, it is dropped with its segments."""
        model.users -= 1
        if model.users > 0:
            return
        for segment in [key for key in self._compiled if key[0] == id(model)]:
            del self._compiled[segment]
        del self._models[model.identity]
        model.close()
        gc.collect()

    def tensor(self, array: Array) -> Any:
        """An array as a MindSpore tensor that shares its memory where it can."""
        if not array.flags.writeable or not array.flags.c_contiguous:
            return self._mindspore.Tensor(array)
        return self._mindspore.Tensor.from_numpy(array)

    def is_compiled(self, model: LoadedModel, segment: Segment, batch: int) -> bool:
        """Whether a segment can run without being compiled first."""
        return (id(model), segment.first, segment.stop, batch) in self._compiled

    def segment(self, model: LoadedModel, segment: Segment, batch: int) -> CompiledSegment:
        """A compiled segment; compiled now (0.1 to 1 s) unless it is there already.

        Raises:
            ModelError: MindSpore cannot compile it.
        """
        key = (id(model), segment.first, segment.stop, batch)
        if key in self._compiled:
            self._compiled.move_to_end(key)
            return self._compiled[key]
        compiled = self._compile(model, segment, batch)
        self._compiled[key] = compiled
        while (
            len(self._compiled) > 1 and sum(each.nbytes for each in self._compiled.values()) > self._memory_limit_bytes
        ):
            self._compiled.popitem(last=False)
        return compiled

    def idle_seconds(self, model: LoadedModel, segment: Segment, *, runs: int) -> float:
        """Seconds that a segment takes for one item: the median of some runs on random values, built first if need be.

        There is a pause before each but the first. Inferences have others' work between them: one right after another
        is quicker.

        Raises:
            ModelError: MindSpore cannot compile it.
        """
        batch = model.graph.smallest_batch
        compiled = self.segment(model, segment, batch)
        specs = [model.graph.spec(value) for value in segment.inputs]
        rng = np.random.default_rng(0)
        arrays = [(rng.random(spec.concrete(batch)) * 100).astype(spec.dtype) for spec in specs]
        seconds = []
        for number in range(runs):
            if number:
                time.sleep(_PAUSE_SECONDS)
            started = time.perf_counter()
            compiled.run(arrays)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds) / batch

    def close(self) -> None:
        """Drops everything; needed before the interpreter ends, where MindSpore's own cleaning up is noisy."""
        self._compiled.clear()
        for model in self._models.values():
            model.close()
        self._models.clear()
        gc.collect()
        self._folder.cleanup()

    def _compile(self, model: LoadedModel, segment: Segment, batch: int) -> CompiledSegment:
        specs = [model.graph.spec(value) for value in segment.inputs]
        path = Path(self._folder.name) / "segment.mindir"
        path.write_bytes(write_segment(model.program, segment, batch).SerializeToString())
        prefix = f"{model.program.model.graph.name}:"
        try:
            cell = self._mindspore.nn.GraphCell(self._mindspore.load(str(path)))
            # The loaded graph holds empty weights of its own; giving their place to the model's shares them.
            for parameter in cell.get_parameters():
                parameter.set_data(model.weight(prefix + parameter.name))
            layers = model.graph.layers[segment.first : segment.stop]
            flowing = sum(spec.nbytes(batch) for layer in layers for spec in layer.outputs[:1])
            compiled = CompiledSegment(self, cell, flowing + _FIXED_BYTES)
            compiled.run([np.zeros(spec.concrete(batch), spec.dtype) for spec in specs])
        except (RuntimeError, ValueError, TypeError) as error:
            first = str(error).strip().splitlines()[:1]
            raise ModelError(
                f"the engine cannot build layers {segment.first} to {segment.stop - 1} "
                f"of {path.name} for a batch of {batch}: {first[0] if first else error!r}"
            ) from error
        finally:
            path.unlink(missing_ok=True)
        model.weights_read()
        return compiled


def _set_threads(mindspore: Any, threads: int) -> None:
    global _configured_threads  # noqa: PLW0603  # it is the process's
    if _configured_threads is None:
        mindspore.device_context.cpu.op_tuning.threads_num(threads)
        _configured_threads = threads
    elif _configured_threads != threads:
        raise SettingsError(
            f"threads: expected {_configured_threads}, which this process's engine was started with, got {threads}"
        )
