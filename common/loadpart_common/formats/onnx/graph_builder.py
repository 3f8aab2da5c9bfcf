"""Makes the format-neutral graph of an ONNX model: layers, shapes, and the stretches that must not be cut."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from onnx import helper

from loadpart_common.errors import ModelError
from loadpart_common.formats.onnx.families import family_of, flops
from loadpart_common.formats.onnx.shapes import BATCH_NAME, fix_batch, infer, is_fixed
from loadpart_common.formats.onnx_program import OnnxProgram, captured
from loadpart_common.graph import Barrier, Graph, Layer, Value, output_specs, unique_names
from loadpart_common.tensors import BATCH, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

_WHY = "whose output has no size that is known before it runs, from layers that use it"
_NOWHERE = TensorSpec("", "uint8", ())
"""Stands for an output that never crosses a cut."""


class Built(NamedTuple):
    """A graph, and the model that it is of."""

    graph: Graph
    program: OnnxProgram


def build(model: onnx.ModelProto, folder: Path, title: str) -> Built:
    """The graph of a model, and the model with the names of the graph's values.

    Args:
        model: The model; large weights are given by their places.
        folder: Where the files with its weights lie.
        title: What the model is called in messages.

    Raises:
        ModelError: The model has a circle, misses a tensor, or has a size that is not known; the message names it.
    """
    return _Builder(model, folder, title).build()


class _Builder:
    def __init__(self, model: onnx.ModelProto, folder: Path, title: str) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._graph = self._model.graph
        self._folder, self._title = folder, title
        self._weights = {tensor.name: tensor for tensor in self._graph.initializer}
        self._values: dict[str, Value] = {}

    def build(self) -> Built:
        inputs = [info for info in self._graph.input if info.name not in self._weights]
        has_batch = self._open_batch(inputs)
        nodes = self._layers(inputs)
        specs = self._specs(inputs, has_batch=has_batch)
        for info in inputs:
            if specs.get(info.name) is None:
                raise ModelError(
                    f"{self._title}: input {info.name!r} has sizes that are not fixed "
                    f"({_sizes(info)}); only the first one, the batch, may vary"
                )
        layers, last_use = [], dict.fromkeys(self._values, -1)
        titles = unique_names([node.name or node.output[0] for node in nodes])
        for index, (node, name) in enumerate(zip(nodes, titles, strict=True)):
            layers.append(self._layer(node, name, specs))
            last_use.update({read: index for read in captured(node) if read in self._values})
        outputs = []
        for info in self._graph.output:
            if info.name not in self._values:
                raise ModelError(f"{self._title}: output {info.name!r} does not depend on any input")
            if specs.get(info.name) is None:
                raise ModelError(f"{self._title}: output {info.name!r} has sizes that are not known before it runs")
            outputs.append(self._values[info.name])
        barriers = [
            Barrier(value.layer, last_use[name], value.layer, _WHY)
            for name, value in self._values.items()
            if value.layer >= 0 and specs.get(name) is None and last_use[name] > value.layer
        ]
        graph = Graph(
            tuple(specs[info.name] or _NOWHERE for info in inputs), tuple(layers), tuple(outputs), tuple(barriers)
        )
        for node in self._graph.node:
            node.name = node.output[0]  # engines follow tensors by the names of the nodes that made them
        names = {value: name for name, value in self._values.items()}
        return Built(graph, OnnxProgram(self._model, names, self._folder))

    def _open_batch(self, inputs: Iterable[onnx.ValueInfoProto]) -> bool:
        """Gives the batch one name where it may vary, and tells whether it may."""
        firsts = [info.type.tensor_type.shape.dim[:1] for info in inputs]
        may_vary = bool(firsts) and all(first and not is_fixed(first[0]) for first in firsts)
        for first in firsts if may_vary else []:
            first[0].dim_param = BATCH_NAME
        for info in self._graph.output:  # what the file says of sizes that are not fixed is inferred anew
            for size in info.type.tensor_type.shape.dim:
                if not is_fixed(size):
                    size.Clear()
        self._graph.ClearField("value_info")
        return may_vary

    def _layers(self, inputs: Iterable[onnx.ValueInfoProto]) -> list[onnx.NodeProto]:
        """The nodes that depend on an input, in order; names the values.

        Raises:
            ModelError: A node reads what nothing before it makes.
        """
        self._values.update({info.name: Value(-1, index) for index, info in enumerate(inputs)})
        known = {"", *self._values, *self._weights, *(each.values.name for each in self._graph.sparse_initializer)}
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.node:
            missing = next((name for name in captured(node) if name not in known), None)
            if missing is not None:
                raise ModelError(
                    f"{self._title}: node {node.name or node.output[0]!r} uses {missing!r}, which nothing before it "
                    "makes"
                )
            if twice := next((name for name in node.output if name and name in known), None):
                raise ModelError(f"{self._title}: {twice!r} is made twice")
            known.update(node.output)
            if any(name in self._values for name in captured(node)):
                self._values.update(
                    {name: Value(len(nodes), element) for element, name in enumerate(node.output) if name}
                )
                nodes.append(node)
        return nodes

    def _specs(self, inputs: Iterable[onnx.ValueInfoProto], *, has_batch: bool) -> Mapping[str, TensorSpec | None]:
        """What is known of each tensor; None for one that cannot cross a cut.

        A model that leaves the batch size open, but gives outputs whose first size is another one or fits no other
        batch size than 1, is one for single items.
        """
        if has_batch:
            with contextlib.suppress(ModelError):
                specs = infer(self._model, self._title, has_batch=True)
                outputs = [specs.get(info.name) for info in self._graph.output]
                if all(spec is not None and spec.shape[:1] == (BATCH,) for spec in outputs):
                    return specs
            fix_batch(inputs, 1)
        return infer(self._model, self._title, has_batch=False)

    def _layer(self, node: onnx.NodeProto, name: str, specs: Mapping[str, TensorSpec | None]) -> Layer:
        inputs = tuple(dict.fromkeys(self._values[read] for read in captured(node) if read in self._values))
        made = [specs.get(output) or _NOWHERE for output in node.output]
        outputs = output_specs(name, [(spec.dtype, spec.shape) for spec in made])
        shapes = [self._shape(read, specs) for read in node.input]
        weights = {read for read in captured(node) if read in self._weights}
        kernel = next((tuple(each.ints) for each in node.attribute if each.name == "kernel_shape"), ())
        return Layer(
            name=name,
            kind=node.op_type,
            family=family_of(node.op_type, reads_weights=bool(weights)),
            inputs=inputs,
            outputs=outputs,
            flops=flops(node.op_type, shapes, outputs[0].concrete(1), kernel),
            weight_bytes=sum(_nbytes(self._weights[read]) for read in weights),
        )

    def _shape(self, name: str, specs: Mapping[str, TensorSpec | None]) -> tuple[int, ...]:
        if name in self._weights:
            return tuple(self._weights[name].dims)
        spec = specs.get(name)
        return () if spec is None else spec.concrete(1)


def _nbytes(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims) * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize


def _sizes(info: onnx.ValueInfoProto) -> str:
    sizes = info.type.tensor_type.shape.dim
    return ", ".join(str(size.dim_value) if size.HasField("dim_value") else size.dim_param or "?" for size in sizes)
