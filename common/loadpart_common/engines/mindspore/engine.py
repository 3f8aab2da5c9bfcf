"""The MindSpore engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart.mindir.v1 import mindir_pb2
from loadpart_common.engines.base import Engine, compiled_bytes
from loadpart_common.engines.mindspore import interrupts
from loadpart_common.engines.mindspore.denormals import flushed
from loadpart_common.engines.mindspore.padding import pad_by_convolution
from loadpart_common.engines.mindspore.preparation import prepare_import
from loadpart_common.errors import ModelError, SettingsError
from loadpart_common.scratch import ScratchFolder
from loadpart_common.text import first_line

if TYPE_CHECKING:
    from collections.abc import Collection

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.formats.mindir.format import MindIRModel
    from loadpart_common.graph import Segment
    from loadpart_common.tensors import Array

_USED_BEFORE = "MindSpore was used in this process before the engine was started: results may differ in the last bits"

log = logging.getLogger(__name__)

_configured_threads: int | None = None


class MindSporeSegment:
    """See `engines.base.CompiledSegment`."""

    def __init__(self, engine: MindSporeEngine, cell: Any, nbytes: int) -> None:
        self._engine = engine
        self._cell = cell
        self.nbytes = nbytes

    def run(self, arrays: list[Array]) -> list[Array]:
        """Runs the segment."""
        with flushed():
            result = self._cell(*[self._engine.tensor(array) for array in arrays])
        outputs = result if isinstance(result, tuple) else (result,)
        return [output.asnumpy() for output in outputs]


class MindSporeModel:
    """See `engines.base.LoadedModel`."""

    def __init__(self, engine: MindSporeEngine, file: MindIRModel) -> None:
        self._engine = engine
        self._file = file
        self._weights: dict[str, Any] = {}

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that have been read."""
        return sum(weight.nbytes for weight in self._weights.values())

    def compile(self, segment: Segment, batch: int) -> MindSporeSegment:
        """Compiles a segment, which shares the model's weights."""
        graph = self._file.graph
        specs = [graph.spec(value) for value in segment.inputs]
        prefix = f"{self._file.program.model.graph.name}:"
        try:
            written = mindir_pb2.Model.FromString(self._file.write_segment(segment, batch))
            pad_by_convolution(written)
            cell = self._engine.load_cell(written.SerializeToString())
            # The loaded graph has empty weights; they are replaced by the model's, which all segments share.
            for parameter in cell.get_parameters():
                parameter.set_data(self._weight(prefix + parameter.name))
            compiled = MindSporeSegment(self._engine, cell, compiled_bytes(graph, segment, batch))
            compiled.run([np.zeros(spec.concrete(batch), spec.dtype) for spec in specs])
        except (RuntimeError, ValueError, TypeError) as error:
            raise ModelError(
                f"the engine cannot build layers {segment.first} to {segment.stop - 1} "
                f"of {self._file.path.name} for a batch of {batch}: {first_line(error)}"
            ) from error
        self._file.release_pages()
        return compiled

    def close(self) -> None:
        """Drops the weights."""
        self._weights.clear()

    def _weight(self, name: str) -> Any:
        """A weight as a MindSpore tensor; always the same one for a name."""
        if name not in self._weights:
            self._weights[name] = self._engine.tensor(self._file.read_weight(name))
        return self._weights[name]


class MindSporeEngine(Engine):
    """See `engines.base.Engine`. Two threads that compile or run at once dead-lock MindSpore."""

    name = "mindspore"
    formats = frozenset({"mindir"})
    needs_own_thread = True
    threads_fixed_for_process = True
    bits_depend_on_threads = True

    def __init__(self, setup: EngineSetup, *, cores: Collection[int] | None = None) -> None:
        """Starts MindSpore, and binds the calling thread and MindSpore's threads to as many cores as there are threads.

        MindSpore's own setting only limits the threads of one operator. How MindSpore divides an operator's work
        depends on the number of cores that it may use, and so does the last bit of a result. Device and server must
        therefore use equally many.

        An application may have used MindSpore before. Then its threads and their cores are what they are, which is
        logged.

        Raises:
            SettingsError: The process's MindSpore runs with another number of threads, or on another device.
        """
        os.sched_setaffinity(0, cores or sorted(os.sched_getaffinity(0))[: setup.threads])
        prepare_import()
        import mindspore

        interrupts.leave_to_python(Path(mindspore.__file__).parent)
        self._mindspore = mindspore
        mindspore.set_context(mode=mindspore.GRAPH_MODE)
        _set_device(mindspore)
        _set_threads(mindspore, setup.threads)
        self.setup = setup
        self._folder = ScratchFolder("loadpart-mindspore-")

    @classmethod
    def version(cls) -> str:
        """Name and version."""
        return f"{cls.name} {importlib.metadata.version('mindspore')}"

    @classmethod
    def is_installed(cls) -> bool:
        """Whether MindSpore is there."""
        return importlib.util.find_spec("mindspore") is not None

    def load(self, model: MindIRModel, _: Path | None) -> MindSporeModel:  # type: ignore[override]  # takes one format
        """Loads a MindIR model."""
        return MindSporeModel(self, model)

    def close(self) -> None:
        """Removes the files that the engine wrote.

        Cells must be dropped before, because MindSpore prints messages when it cleans them up at exit.
        """
        self._folder.close()

    def tensor(self, array: Array) -> Any:
        """An array as a MindSpore tensor that shares its memory where it can."""
        if not array.flags.writeable or not array.flags.c_contiguous:
            return self._mindspore.Tensor(array)
        return self._mindspore.Tensor.from_numpy(array)

    def load_cell(self, mindir: bytes) -> Any:
        """A MindIR model as a cell. It is written to a file, because MindSpore only reads files."""
        path = self._folder.path / "segment.mindir"
        path.write_bytes(mindir)
        try:
            return self._mindspore.nn.GraphCell(self._mindspore.load(str(path)))
        finally:
            path.unlink(missing_ok=True)

    @classmethod
    def write_random_network(cls, seed: int, folder: Path) -> Path:
        """Writes the random network of a seed; see `zoo.synthetic`."""
        from loadpart_common.engines.mindspore.zoo import export_synthetic

        path = folder / f"random-{seed}.mindir"
        export_synthetic(seed, path)
        return path


def _set_device(mindspore: Any) -> None:
    """Has MindSpore compute on the processor, which it accepts only before it has computed anything.

    Raises:
        SettingsError: It computes on another device.
    """
    before = mindspore.get_context("device_target")
    try:
        mindspore.set_device("CPU")
    except RuntimeError as error:
        if before != "CPU":
            raise SettingsError(f"mindspore: expected to compute on the CPU, but this process uses {before}") from error
        log.warning("%s (%s)", _USED_BEFORE, error)


def _set_threads(mindspore: Any, threads: int) -> None:
    """Sets the number of threads, which MindSpore accepts only once in a process.

    Raises:
        SettingsError: The engine was started with another number before.
    """
    global _configured_threads  # noqa: PLW0603  # it is the process's
    if _configured_threads is None:
        try:
            mindspore.device_context.cpu.op_tuning.threads_num(threads)
        except RuntimeError as error:  # the application has set it
            log.warning("%s (%s)", _USED_BEFORE, error)
        _configured_threads = threads
    elif _configured_threads != threads:
        raise SettingsError(
            f"threads: expected {_configured_threads}, which this process's engine was started with, got {threads}"
        )
