"""The latency model: idle seconds of any segment of any network on one machine, with one engine.

Three sources, each refining the last. A linear model per family of operators, with non-negative coefficients over
operations and bytes, is fitted once per machine (`calibration`) and predicts networks that never ran. Measured
segments of one network (`profile`) fix its seconds at their cuts, and the linear model only fills the stretches
between them. Running inferences then correct these anchors slowly (`Anchors.observe`).
"""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart_common.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from loadpart_common.graph import Graph, Layer, Segment
    from loadpart_common.tensors import Array

    Coefficients = Mapping[str, Mapping[str, float]]

_FORMAT = 1
_FLOAT_BYTES = 4

SEGMENT = "segment"
"""The family of what a segment costs beside its layers: entering the engine, taking and giving tensors."""

OTHER = "other"
"""The family of operators that the calibration did not meet."""

_FAMILY_BY_PREFIX = {
    "Conv": "convolution",
    "MatMul": "matrix product",
    "BatchMatMul": "matrix product",
    "Dense": "matrix product",
    "LinearExt": "matrix product",
    "MaxPool": "pooling",
    "AvgPool": "pooling",
}


def features(graph: Graph, layer: Layer) -> tuple[str, dict[str, float]]:
    """The family of a layer and what its seconds are linear in, for one item of the batch.

    Every family has `calls` (1 a layer). Convolutions run as matrix products: a 1x1 one reads its input as it lies, a
    larger or strided one gathers patches first (`patch_bytes`), a grouped one goes row by row.
    """
    family = next((family for prefix, family in _FAMILY_BY_PREFIX.items() if layer.kind.startswith(prefix)), layer.kind)
    output = layer.outputs[0]
    shape = output.concrete(1)
    read = float(sum(graph.spec(value).nbytes(1) for value in layer.inputs))
    written = float(output.nbytes(1))
    if family == "convolution" and len(shape) == 4 and layer.inputs:
        return _convolution(layer, shape, graph.spec(layer.inputs[0]).concrete(1), read, written)
    if family == "matrix product":
        return family, {"calls": 1.0, "flops": float(layer.flops), "weight_bytes": float(layer.weight_bytes)}
    if family == "pooling":
        rows = float(math.prod(shape[:3]))
        return family, {"calls": 1.0, "flops": float(layer.flops), "output_bytes": written, "rows": rows}
    return family, {"calls": 1.0, "input_bytes": read, "output_bytes": written}


def _convolution(
    layer: Layer, output: tuple[int, ...], read_from: tuple[int, ...], read: float, written: float
) -> tuple[str, dict[str, float]]:
    taps = layer.flops / 2 / max(math.prod(output), 1)  # input channels a group x kernel height x kernel width
    channels, positions = read_from[1], math.prod(output[2:])
    if taps < channels:
        rows = float(output[1] * output[2])
        return "grouped convolution", {"calls": 1.0, "outputs": float(math.prod(output)), "rows": rows}
    work = {"calls": 1.0, "flops": float(layer.flops), "weight_bytes": float(layer.weight_bytes)}
    patches = taps * positions * _FLOAT_BYTES
    if taps == channels:
        strided = read_from[2:] != output[2:]
        return "1x1 convolution", {
            **work, "input_bytes": read, "output_bytes": written, "patch_bytes": patches if strided else 0.0,
        }  # fmt: skip
    return "convolution", {**work, "output_bytes": written, "patch_bytes": patches}


def segment_features(graph: Graph, segment: Segment) -> dict[str, float]:
    """What a segment costs beside its layers is linear in these."""
    return {
        "calls": 1.0,
        "input_bytes": float(sum(graph.spec(value).nbytes(1) for value in segment.inputs)),
        "output_bytes": float(sum(graph.spec(value).nbytes(1) for value in segment.outputs)),
    }


@dataclass(frozen=True)
class LatencyModel:
    """Seconds per unit of each feature of each family, and where they come from.

    Attributes:
        coefficients: By family, then by feature; seconds per call, operation, byte, output or row.
        machine: Processor and cores that they were measured on.
        engine: Engine and version.
        threads: Threads of one operator.
        segments: Segments that were measured.
        error: Mean absolute error of the fit, as a share.
    """

    coefficients: Coefficients
    machine: str
    engine: str
    threads: int
    segments: int
    error: float

    def layer_seconds(self, graph: Graph) -> Array:
        """Seconds of each layer, one item of the batch, shape (layers,)."""
        return np.array([self._seconds(*features(graph, layer)) for layer in graph.layers])

    def segment_seconds(self, graph: Graph, segment: Segment) -> float:
        """Seconds of a segment beside those of its layers."""
        return self._seconds(SEGMENT, segment_features(graph, segment))

    def to_json(self) -> str:
        """The model as a readable document."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str, source: str | Path) -> LatencyModel:
        """Reads what `to_json` wrote.

        Raises:
            SettingsError: It is something else; the message names `source`.
        """
        with _reading("latency model", text, source, "calibrate") as document:
            coefficients = {
                str(family): {str(feature): float(seconds) for feature, seconds in row.items()}
                for family, row in document["coefficients"].items()
            }
            if not {SEGMENT, OTHER} <= coefficients.keys():
                raise SettingsError(f"{source}: expected the families {SEGMENT!r} and {OTHER!r} among the coefficients")
            if any(not 0 <= seconds < math.inf for row in coefficients.values() for seconds in row.values()):
                raise SettingsError(f"{source}: expected coefficients of 0 or more")
            return cls(
                coefficients,
                str(document["machine"]),
                str(document["engine"]),
                int(document["threads"]),
                int(document["segments"]),
                float(document["error"]),
            )

    def _seconds(self, family: str, amounts: Mapping[str, float]) -> float:
        row = self.coefficients.get(family)
        if row is None:  # what is not known has at least these features, or none of the others' costs
            row = self.coefficients[OTHER]
        return sum(row.get(feature, 0.0) * amount for feature, amount in amounts.items())


def shipped_model() -> LatencyModel:
    """The model that is used where none was calibrated: of one core of a present-day server.

    Its proportions hold for most machines; its absolute seconds do not, until segments have been measured.
    """
    name = "shipped.json"
    return LatencyModel.from_json(resources.files("loadpart_common.latency").joinpath(name).read_text("utf-8"), name)


@dataclass(frozen=True)
class Profile:
    """Measured idle seconds of some segments of one network, one item of the batch, by cut."""

    heads: Mapping[int, float]
    tails: Mapping[int, float]

    def to_json(self) -> str:
        """The profile as a readable document."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str, source: str | Path) -> Profile:
        """Reads what `to_json` wrote.

        Raises:
            SettingsError: It is something else; the message names `source`.
        """
        with _reading("profile", text, source, "profile") as document:
            heads, tails = (
                {int(cut): float(seconds) for cut, seconds in document[side].items()} for side in ("heads", "tails")
            )
            return cls(heads, tails)


@contextlib.contextmanager
def _reading(what: str, text: str, source: str | Path, command: str) -> Iterator[dict[str, Any]]:
    """A document of this format; what goes wrong while the block reads it is told as a damaged or foreign file."""
    try:
        document = json.loads(text)
        if document["format"] != _FORMAT:
            raise SettingsError(f"{source}: expected {what} format {_FORMAT}, got {document['format']!r}")
        yield document
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(f"{source} is not a {what} ({error!r}); delete it and {command} again") from error


class Curves:
    """Idle seconds of the head and the tail of every cut of a network, from a latency model and measured anchors."""

    def __init__(self, graph: Graph, model: LatencyModel) -> None:
        self._graph = graph
        layers = np.concatenate([[0.0], np.cumsum(model.layer_seconds(graph))])
        self._before, self._after = layers, layers[-1] - layers
        self._head_extra, self._tail_extra = np.zeros(graph.whole + 1), np.zeros(graph.whole + 1)
        for cut in graph.cuts:
            if cut.index > 0:
                self._head_extra[cut.index] = model.segment_seconds(graph, graph.head(cut.index))
            if cut.index < graph.whole:
                self._tail_extra[cut.index] = model.segment_seconds(graph, graph.tail(cut.index))

    def head_seconds(self, measured: Mapping[int, float]) -> Array:
        """Seconds of the head of every cut from 0 to the number of layers, shape (layers + 1,).

        Args:
            measured: Idle seconds of heads, by cut; may be empty.
        """
        return _through(self._before, self._head_extra, {0: 0.0, **measured})

    def tail_seconds(self, measured: Mapping[int, float]) -> Array:
        """Seconds of the tail of every cut from 0 to the number of layers, shape (layers + 1,).

        Args:
            measured: Idle seconds of tails, by cut; may be empty.
        """
        whole = self._graph.whole
        anchors = {whole - cut: seconds for cut, seconds in {whole: 0.0, **measured}.items()}
        return _through(self._after[::-1], self._tail_extra[::-1], anchors)[::-1]

    def spread_cuts(self, number: int) -> list[int]:
        """Valid cuts that share the network's seconds out evenly, both ends among them; at most `number` + 1."""
        cuts = [cut.index for cut in self._graph.cuts]
        targets = np.linspace(0.0, self._before[-1], number + 1)
        return sorted({min(cuts, key=lambda cut: abs(self._before[cut] - target)) for target in targets})


def _through(layers: Array, extra: Array, anchors: Mapping[int, float]) -> Array:
    """A curve through the anchors (position: seconds) whose layers' part rises between them as `layers` does."""
    positions = np.array(sorted(anchors))
    values = np.maximum.accumulate([max(anchors[position] - extra[position], 0.0) for position in positions])
    if len(positions) == 1:
        return layers + extra
    curve = np.interp(layers, layers[positions], values)
    last = positions[-1]
    curve[last:] = values[-1] + (layers[last:] - layers[last]) * (values[-1] / max(layers[last], 1e-12))
    return curve + extra


_FALL, _RISE = 0.02, 0.002
"""Steps of the logarithm by which an observation moves an anchor: it settles where one in eleven lies below it."""
_FARTHEST = 1.25
_WORTH_TELLING = 0.02


@dataclass
class Anchors:
    """Idle seconds of some segments of a network, by cut, corrected by the inferences that are observed.

    An observed run is never quicker than an idle one except for noise, and slower by any amount when the machine is
    loaded. So each anchor follows a low quantile of what is observed, by small steps of one size up and another down
    (stochastic approximation, Robbins and Monro 1951): an outlier moves it no more than any other run. It stays within
    a quarter of what was measured, and runs that are slower than that say nothing: a load that lasts is not taken for
    the machine.

    Attributes:
        seconds: The anchors now.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    _measured: dict[int, float] = field(default_factory=dict)
    _told: dict[int, float] = field(default_factory=dict)

    def measure(self, cut: int, seconds: float) -> None:
        """Takes in an idle measurement; of several the least counts."""
        self._measured[cut] = min(seconds, self._measured.get(cut, seconds))
        self.seconds[cut] = self._told[cut] = self._measured[cut]

    def observe(self, cut: int, seconds: float) -> bool:
        """Takes in what a run took; gives whether the anchors have changed enough to draw curves anew."""
        if cut not in self.seconds:
            return False
        low, high = self._measured[cut] / _FARTHEST, self._measured[cut] * _FARTHEST
        if seconds > high:
            return False
        step = math.exp(-_FALL) if seconds < self.seconds[cut] else math.exp(_RISE)
        self.seconds[cut] = min(max(self.seconds[cut] * step, low), high)
        if abs(self.seconds[cut] / self._told[cut] - 1) < _WORTH_TELLING:
            return False
        self._told[cut] = self.seconds[cut]
        return True
