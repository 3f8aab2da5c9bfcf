"""The OpenVINO engine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart_common.engines.base import Engine, EngineSetup, compiled_bytes
from loadpart_common.engines.choice import EXACT
from loadpart_common.engines.openvino.runtime import runtime
from loadpart_common.engines.synthetic.onnx_file import write_onnx
from loadpart_common.errors import CutError, ModelError, SettingsError
from loadpart_common.formats.onnx_program import files_with_weights
from loadpart_common.text import first_line

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from loadpart_common.formats.base import OpenModel
    from loadpart_common.graph import Segment, Value
    from loadpart_common.tensors import Array

_PRECISIONS = {EXACT: ("f32", "FP32"), "bfloat16": ("bf16", "BF16"), "float16": ("f16", "FP16")}
"""By name: the hint, and the capability that a device has for it."""

_NETWORK = "network.xml"
_PROCESSOR = "CPU"


class OpenVinoSegment:
    """See `engines.base.CompiledSegment`."""

    def __init__(self, compiled: Any, nbytes: int) -> None:
        self.nbytes = nbytes
        self._compiled = compiled
        self._outputs = range(len(compiled.outputs))
        self._requests: deque[Any] = deque()  # that no thread uses just now

    def run(self, arrays: list[Array]) -> list[Array]:
        """Runs the segment."""
        try:
            request = self._requests.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        request.infer(arrays, share_inputs=True)
        outputs = [np.array(request.get_output_tensor(index).data) for index in self._outputs]
        self._requests.append(request)
        return outputs


class OpenVinoModel:
    """See `engines.base.LoadedModel`."""

    def __init__(self, engine: OpenVinoEngine, file: OpenModel, folder: Path) -> None:
        self._engine = engine
        self._file = file
        self._names = file.onnx().names
        self._network = engine.read(folder / _NETWORK)
        self._cutting = threading.Lock()

    def compile(self, segment: Segment, batch: int) -> OpenVinoSegment:
        """Compiles a segment for a batch size.

        Raises:
            CutError: One of the tensors where it begins or ends is gone.
            ModelError: OpenVINO cannot compile it.
        """
        graph = self._file.graph
        weights = sum(layer.weight_bytes for layer in graph.layers[segment.first : segment.stop])
        try:
            with self._cutting:
                model = self._cut_out(segment)
            sizes = {index: graph.spec(value).concrete(batch) for index, value in enumerate(segment.inputs)}
            model.reshape({index: list(size) for index, size in sizes.items()})
            compiled = self._engine.compile(model)
        except RuntimeError as error:
            raise ModelError(f"the engine {self._engine.name} cannot compile: {first_line(error)}") from error
        # Weights are kept anew for each segment, in the order that its operators want.
        return OpenVinoSegment(compiled, compiled_bytes(graph, segment, batch) + weights)

    def close(self) -> None:
        """Drops the network."""
        self._network = None

    def _cut_out(self, segment: Segment) -> Any:
        """A segment as a model of its own.

        Raises:
            CutError: See `compile`.
        """
        openvino = runtime()
        model = self._network.clone()
        ports = {
            name: port
            for node in model.get_ordered_ops()
            if node.get_type_name() != "Result"  # its port has the name of what it is the result of
            for port in node.outputs()
            for name in port.get_names()
        }
        old_results, old_parameters = list(model.results), list(model.get_parameters())
        begins = [self._port(value, ports) for value in segment.inputs]
        ends = [self._port(value, ports) for value in segment.outputs]
        parameters = []
        for port in begins:
            parameter = openvino.opset13.parameter(port.get_partial_shape(), port.get_element_type())
            for reader in list(port.get_target_inputs()):
                reader.replace_source_output(parameter.output(0))
            parameters.append(parameter)
        sources = [
            next((made.output(0) for made, port in zip(parameters, begins, strict=True) if port == end), end)
            for end in ends
        ]
        model.add_results([openvino.opset13.result(source) for source in sources])
        model.add_parameters(parameters)
        for result in old_results:
            model.remove_result(result)
        for parameter in old_parameters:
            model.remove_parameter(parameter)
        return model

    def _port(self, value: Value, ports: dict[str, Any]) -> Any:
        name = self._names.get(value, "")
        if name not in ports:
            raise CutError(f"the tensor {name!r} is not there any more: {self._engine.name} computes without it")
        return ports[name]


class OpenVinoEngine(Engine):
    """See `engines.base.Engine`."""

    name = "openvino"
    formats = frozenset({"mindir", "onnx"})
    needs_own_thread = False
    threads_fixed_for_process = False
    adopts = True
    precisions = tuple(_PRECISIONS)
    bits_depend_on_threads = True

    def __init__(self, setup: EngineSetup, *, cores: Collection[int] | None = None) -> None:
        """Starts OpenVINO; threads that it starts may use the given cores."""
        if cores:
            os.sched_setaffinity(0, cores)
        self.setup = setup
        self._core = runtime().Core()
        self._device = setup.provider.upper() or _PROCESSOR
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _PRECISIONS[setup.precision][0],
            "PERFORMANCE_HINT": "LATENCY",
        }
        if self._device == _PROCESSOR:
            self._settings |= {
                "INFERENCE_NUM_THREADS": setup.threads,
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,  # who starts the engine says on which cores
            }

    @classmethod
    def version(cls) -> str:
        """Name and version."""
        return f"{cls.name} {importlib.metadata.version('openvino')}"

    @classmethod
    def is_installed(cls) -> bool:
        """Whether OpenVINO is there, and what its models are written with."""
        return all(importlib.util.find_spec(name) is not None for name in ("openvino", "onnx"))

    @classmethod
    def check_precision(cls, precision: str, provider: str) -> None:
        """See `Engine.check_precision`."""
        super().check_precision(precision, provider)
        if precision == EXACT:
            return
        device = provider.upper() or _PROCESSOR
        offered = runtime().Core().get_property(device, "OPTIMIZATION_CAPABILITIES")
        if _PRECISIONS[precision][1] not in offered:
            known = " or ".join(name for name, (_, capability) in _PRECISIONS.items() if capability in offered)
            raise SettingsError(f"precision: {cls.name} offers {known} on this {device}, got {precision!r}")

    @classmethod
    def check_provider(cls, provider: str) -> None:
        """Checks that OpenVINO sees a device, such as `gpu` or `npu`.

        Raises:
            SettingsError: It does not; the message lists those that it sees.
        """
        seen = [device.lower() for device in runtime().Core().available_devices]
        if provider.lower() not in seen:
            raise SettingsError(f"provider: expected one of {', '.join(seen)}, which {cls.name} sees, got {provider!r}")

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
    def adopt(cls, model: OpenModel, folder: Path, setup: EngineSetup) -> None:  # noqa: ARG003
        """Writes a network in OpenVINO's own form, whose weights are mapped into memory.

        Raises:
            ModelError: It has operators that the engine does not know; the message names one.
        """
        openvino = runtime()
        program = model.onnx()
        written = folder / "network.onnx"
        written.write_bytes(program.model.SerializeToString())
        beside = [_brought(program.folder / name, folder) for name in files_with_weights(program.model)]
        try:
            openvino.save_model(openvino.Core().read_model(written), folder / _NETWORK, compress_to_fp16=False)
        except RuntimeError as error:
            lines = str(error).strip().splitlines()
            raise ModelError(f"the engine {cls.name} cannot load the model: {lines[-1] if lines else error}") from error
        for path in (written, *beside):
            path.unlink()

    @classmethod
    def cuts_must_be_tried(cls, setup: EngineSetup) -> bool:
        """Always: what it fuses in a segment may differ from what it fuses in the whole network."""
        del setup
        return True

    def load(self, model: OpenModel, adopted: Path | None) -> OpenVinoModel:
        """Takes in a network."""
        assert adopted is not None
        return OpenVinoModel(self, model, adopted)

    def close(self) -> None:
        """Networks end with their segments."""

    def read(self, path: Path) -> Any:
        """A network that was written in OpenVINO's own form."""
        return self._core.read_model(path)

    def compile(self, model: Any) -> Any:
        """Compiles a model."""
        return self._core.compile_model(model, self._device, self._settings)


def _brought(source: Path, folder: Path) -> Path:
    """A file under the same name in a folder: OpenVINO reads weights that lie beside the network alone."""
    target = folder / source.name
    try:
        os.link(source, target)
    except OSError:  # another disk, or somebody else's file
        shutil.copyfile(source, target)
    return target
