"""A model format and an engine in numpy for the tests: small enough to read quickly, complete enough to be served.

A model is a JSON file with inputs, layers of three kinds of operators, and outputs. Importing this module registers
format and engine; daemon, workers and devices import it because LOADPART_PLUGINS names it.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart_common.engines.base import Engine
from loadpart_common.engines.registry import ENGINES
from loadpart_common.errors import ModelError, ModelNotFoundError
from loadpart_common.families import Family
from loadpart_common.files import file_state, open_regular
from loadpart_common.formats.base import ModelFormat
from loadpart_common.formats.registry import FORMATS
from loadpart_common.graph import Barrier, Graph, Layer, Segment, Value, output_specs
from loadpart_common.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.tensors import Array

FAMILIES = {"affine": Family.MULTIPLICATION, "concat": Family.CONCATENATION, "dense": Family.MATRIX_PRODUCT}


class ToyModel:
    """See `OpenModel`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                self.identity, self.data = file_state(file), file.read()
            self.document: dict[str, Any] = json.loads(self.data)
        except FileNotFoundError as error:
            raise ModelNotFoundError(f"no model file at {path}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path} is not a toy model: {error}") from error

    @property
    def nbytes(self) -> int:
        return len(self.data)

    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def close(self) -> None:
        pass

    @cached_property
    def graph(self) -> Graph:
        inputs = tuple(TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in self.document["inputs"])
        layers: list[Layer] = []
        for name, kind, sources in self.document["layers"]:
            if kind not in FAMILIES:
                raise ModelError(f"node {name!r}: no operator {kind!r}: expected one of {', '.join(FAMILIES)}")
            values = tuple(Value(*source) for source in sources)
            specs = [inputs[v.element] if v.layer < 0 else layers[v.layer].outputs[v.element] for v in values]
            shape = specs[0].shape
            flops, weight_bytes = int(np.prod(specs[0].concrete(1))), 4
            if kind == "concat":
                shape = (*shape[:-1], sum(spec.shape[-1] for spec in specs))
            if kind == "dense":
                weight_bytes, flops, shape = 4 * 10 * flops, 20 * flops, (shape[0], 10)
            outputs = output_specs(name, [("float32", shape)])
            layers.append(Layer(name, kind, FAMILIES[kind], values, outputs, flops, weight_bytes))
        outputs = tuple(Value(*value) for value in self.document["outputs"])
        return Graph(inputs, tuple(layers), outputs, tuple(Barrier(*each) for each in self.document["barriers"]))


class ToyFormat(ModelFormat):
    """See `ModelFormat`."""

    name, suffix = "toy", ".toy"

    def open(self, path: Path) -> ToyModel:
        return ToyModel(path)


class ToySegment:
    """See `CompiledSegment`."""

    def __init__(self, graph: Graph, segment: Segment) -> None:
        self.graph, self.segment, self.nbytes = graph, segment, 1000

    def run(self, arrays: list[Array]) -> list[Array]:
        values = dict(zip(self.segment.inputs, arrays, strict=True))
        for index in range(self.segment.first, self.segment.stop):
            layer = self.graph.layers[index]
            taken = [values[value].astype(np.float32) for value in layer.inputs]
            values[Value(index, 0)] = run_layer(layer.kind, index, taken)
        return [values[value] for value in self.segment.outputs]


def run_layer(kind: str, index: int, taken: list[Array]) -> Array:
    if kind == "affine":
        return taken[0] * np.float32(0.9) + np.float32(index)
    if kind == "concat":
        return np.concatenate(taken, axis=-1)
    flat = taken[0].reshape(len(taken[0]), -1)
    weights = np.random.default_rng(index).standard_normal((flat.shape[1], 10)).astype(np.float32)
    return np.einsum("nf,fo->no", flat, weights)  # unlike `@`, the same bits with any number of threads


class ToyEngine(Engine):
    """See `Engine`; it is its own `LoadedModel`, since there are no weights to share."""

    name, formats = "toy", frozenset({"toy"})
    needs_own_thread = threads_fixed_for_process = False

    def __init__(self, setup: EngineSetup, *, cores: Collection[int] | None = None) -> None:  # noqa: ARG002
        self.setup = setup

    @classmethod
    def version(cls) -> str:
        return "toy 1"

    def load(self, model: ToyModel, _: Path | None) -> ToyLoaded:  # type: ignore[override]
        return ToyLoaded(model.graph)

    def close(self) -> None:
        pass


class ToyLoaded:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def compile(self, segment: Segment, batch: int) -> ToySegment:  # noqa: ARG002  # any batch will do
        return ToySegment(self.graph, segment)

    def close(self) -> None:
        pass


FORMATS.register("toy", ToyFormat)
ENGINES.register("toy", lambda: ToyEngine)
