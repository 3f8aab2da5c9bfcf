"""The ONNX Runtime engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import mmap
import os
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart_common.engines.base import Engine, compiled_bytes
from loadpart_common.engines.onnxruntime.runtime import runtime
from loadpart_common.engines.synthetic.onnx_file import write_onnx
from loadpart_common.errors import CutError, ModelError, SettingsError
from loadpart_common.text import first_line

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.engines.onnxruntime.optimised import OptimisedNetwork
    from loadpart_common.formats.base import OpenModel
    from loadpart_common.graph import Segment
    from loadpart_common.tensors import Array

_OPTIMISED, _WEIGHTS = "optimised.onnx", "optimised.weights"
_FOLDER_OPTION = "session.model_external_initializers_file_folder_path"
_ERRORS_ONLY = 3
_PROCESSOR = "CPUExecutionProvider"

_SMALL_BYTES = 1024
"""Weights that are smaller stay in the optimised network; the others are shared by all segments."""


class _Session:
    """A session, and the weights whose memory it uses, also while the model is being unloaded."""

    def __init__(self, session: Any, weights: dict[str, Any]) -> None:
        self._weights = weights
        self._names = [given.name for given in session.get_inputs()]
        self._session = session

    def run(self, arrays: list[Array]) -> list[Array]:
        outputs: list[Array] = self._session.run(None, dict(zip(self._names, arrays, strict=True)))
        return outputs


class OnnxRuntimeSegment:
    """See `engines.base.CompiledSegment`."""

    def __init__(self, session: _Session, nbytes: int) -> None:
        self._session = session
        self.nbytes = nbytes

    def run(self, arrays: list[Array]) -> list[Array]:
        """Runs the segment."""
        return self._session.run(arrays)


class OnnxRuntimeModel:
    """See `engines.base.LoadedModel`."""

    def __init__(self, engine: OnnxRuntimeEngine, file: OpenModel, folder: Path) -> None:
        self._engine = engine
        self._file = file
        self._folder = folder
        self._network = _optimised(file, folder)
        self._weights = {name: engine.shared(array) for name, array in _weights(self._network, folder).items()}
        # By the first layer and the one after the last: segments of several batch sizes share one while there are any.
        self._sessions: weakref.WeakValueDictionary[tuple[int, int], _Session] = weakref.WeakValueDictionary()

    def compile(self, segment: Segment, batch: int) -> OnnxRuntimeSegment:
        """Makes a segment ready: one session serves all batch sizes.

        Raises:
            CutError: The segment would begin or end within operators that the engine runs as one.
        """
        key = segment.first, segment.stop
        session = self._sessions.get(key)
        if session is None:
            model = self._network.segment(segment)
            if model is None:
                raise CutError(
                    f"layers {segment.first} to {segment.stop - 1} cannot be cut out: {self._engine.name} runs layers "
                    "there as one operator"
                )
            names = (tensor.name for tensor in model.graph.initializer)
            weights = {name: self._weights[name] for name in names if name in self._weights}
            session = _Session(self._engine.session(model.SerializeToString(), weights, self._folder), weights)
            self._sessions[key] = session
        return OnnxRuntimeSegment(session, compiled_bytes(self._file.graph, segment, batch))

    def close(self) -> None:
        """Drops the weights."""
        self._weights.clear()


class OnnxRuntimeEngine(Engine):
    """See `engines.base.Engine`."""

    name = "onnxruntime"
    formats = frozenset({"mindir", "onnx"})
    needs_own_thread = False
    threads_fixed_for_process = False
    adopts = True

    def __init__(self, setup: EngineSetup, *, cores: Collection[int] | None = None) -> None:
        """Starts ONNX Runtime; threads that it starts may use the given cores."""
        if cores:
            os.sched_setaffinity(0, cores)
        self._runtime = runtime()
        self.setup = setup

    @classmethod
    def version(cls) -> str:
        """Name and version."""
        return f"{cls.name} {importlib.metadata.version('onnxruntime')}"

    @classmethod
    def is_installed(cls) -> bool:
        """Whether ONNX Runtime is there, and what its models are written with."""
        return all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "onnx"))

    @classmethod
    def check_provider(cls, provider: str) -> None:
        """Checks that ONNX Runtime was built with an execution provider, such as `cuda`, `tensorrt` or `coreml`.

        Raises:
            SettingsError: It was not; the message lists those that it was built with.
        """
        _provider(provider)

    @classmethod
    def why_not(cls, model: OpenModel) -> str | None:
        """Which operator cannot be written as ONNX."""
        try:
            model.onnx()
        except ModelError as error:
            return str(error)
        return None

    @classmethod
    def write_random_network(cls, seed: int, folder: Path) -> Path:
        """Writes the random network of a seed; see `engines.synthetic`."""
        return write_onnx(seed, folder)

    @classmethod
    def adopt(cls, model: OpenModel, folder: Path, setup: EngineSetup) -> Collection[int]:
        """Optimises a network as a whole; it can be cut where no operators were fused.

        Raises:
            ModelError: It has operators that the engine does not know; the message names one.
        """
        program = model.onnx()
        try:
            _optimise(program.model.SerializeToString(), program.folder, folder / _OPTIMISED, fully=not setup.provider)
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise ModelError(f"the engine {cls.name} cannot load the model: {first_line(error)}") from error
        network = _optimised(model, folder)
        return [cut.index for cut in model.graph.cuts if network.can_cut(cut.index)]

    @classmethod
    def cuts_must_be_tried(cls, setup: EngineSetup) -> bool:
        """On other providers than the processor: what they make of the operators does not show beforehand."""
        return bool(setup.provider)

    def load(self, model: OpenModel, adopted: Path | None) -> OnnxRuntimeModel:
        """Takes in an optimised network."""
        assert adopted is not None
        return OnnxRuntimeModel(self, model, adopted)

    def close(self) -> None:
        """Sessions end with their segments."""

    def session(self, model: bytes, weights: dict[str, Any], folder: Path) -> Any:
        """A session that runs a model as it is.

        Args:
            model: The model.
            weights: What its weights are, by name.
            folder: Where the file with the weights lies, which ONNX Runtime wants to see although it reads none.
        """
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = self.setup.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(_FOLDER_OPTION, str(folder))
        # Otherwise each session keeps the weights of matrix products a second time, in another order: 2 GB for the
        # tails of vgg16, for nothing with one image. Bits differ between the two, so it is the same for all segments.
        options.add_session_config_entry("session.disable_prepacking", "1")
        for name, value in weights.items():
            options.add_initializer(name, value)
        providers = [_PROCESSOR] if not self.setup.provider else [_provider(self.setup.provider), _PROCESSOR]
        return self._runtime.InferenceSession(model, options, providers=providers)

    def shared(self, array: Array) -> Any:
        """An array as a weight that sessions share."""
        return self._runtime.OrtValue.ortvalue_from_numpy(array)


def _provider(name: str) -> str:
    """An execution provider as ONNX Runtime calls it.

    Raises:
        SettingsError: It was built without it.
    """
    suffix = "ExecutionProvider"
    built: dict[str, str] = {each.removesuffix(suffix).lower(): each for each in runtime().get_available_providers()}
    found = built.get(name.removesuffix(suffix).lower())
    if found is None:
        raise SettingsError(
            f"provider: expected one of {', '.join(sorted(built))}, which this ONNX Runtime was built with, got "
            f"{name!r}; other builds of it, such as the package onnxruntime-gpu, have others"
        )
    return found


def _optimise(model: bytes, weights_folder: Path, target: Path, *, fully: bool) -> None:
    """Writes a model as ONNX Runtime optimises it, and its weights to a file beside it.

    Args:
        model: The model.
        weights_folder: Where the files with its weights lie.
        target: The file to write.
        fully: Whether to optimise for the processor, too, with operators that no other provider has.
    """
    onnxruntime = runtime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if fully else levels.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    for key, value in {
        _FOLDER_OPTION: str(weights_folder),
        "session.optimized_model_external_initializers_file_name": _WEIGHTS,
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_SMALL_BYTES),
    }.items():
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(model, options, providers=[_PROCESSOR])


def _optimised(file: OpenModel, folder: Path) -> OptimisedNetwork:
    """The network that `_optimise` has written."""
    import onnx

    from loadpart_common.engines.onnxruntime.optimised import OptimisedNetwork

    return OptimisedNetwork(onnx.load(folder / _OPTIMISED, load_external_data=False), file.onnx(), file.graph)


def _weights(network: OptimisedNetwork, folder: Path) -> dict[str, Array]:
    """The weights of an optimised network that lie in the file beside it, mapped into memory."""
    from onnx import helper

    from loadpart_common.formats.onnx_program import place_in_file

    path = folder / _WEIGHTS
    if not path.exists():
        return {}
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    weights: dict[str, Array] = {}
    for name, tensor in network.initializers.items():
        if (place := place_in_file(tensor)) is not None:
            count = int(np.prod(tensor.dims, dtype=np.int64))
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            weights[name] = np.frombuffer(mapped, dtype, count, int(place.get("offset", 0))).reshape(tensor.dims)
    return weights
