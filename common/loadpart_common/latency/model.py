"""The linear model: what each operation, byte and call costs on one machine, with one engine.

It is fitted once per machine (see `calibration`) and predicts networks that never ran.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.engines.choice import EXACT
from loadpart_common.errors import SettingsError
from loadpart_common.latency.documents import reading_document, write_document
from loadpart_common.latency.features import OTHER, SEGMENT, features, segment_features

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.graph import Graph, Segment
    from loadpart_common.tensors import Array

    Coefficients = Mapping[str, Mapping[str, float]]

_REFERENCE = "mindspore.json"


@dataclass(frozen=True)
class LatencyModel:
    """Seconds per unit of each feature of each family, fitted on one machine with one engine.

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
        return write_document(asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str | Path) -> LatencyModel:
        """Reads what `to_json` wrote.

        Raises:
            SettingsError: It is something else; the message names `source`.
        """
        with reading_document("latency model", text, source, "calibrate") as document:
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
        # A family that was not measured uses the pooled row; features that this row lacks cost nothing.
        row = self.coefficients.get(family) or self.coefficients[OTHER]
        return sum(row.get(feature, 0.0) * amount for feature, amount in amounts.items())


def shipped_model(setup: EngineSetup | None = None) -> LatencyModel:
    """The model that is used where none was calibrated: of one core of a present-day server.

    Its proportions hold for most machines; its absolute seconds do not, until segments have been measured. For an
    engine of which none is shipped it is that of the engine of reference.

    Args:
        setup: The engine; that of reference when None.
    """
    folder = resources.files("loadpart_common.latency") / "shipped"
    names = [_REFERENCE]
    if setup is not None:
        precision = "" if setup.precision == EXACT else f"-{setup.precision}"
        names = [f"{setup.engine.name}{precision}.json", f"{setup.engine.name}.json", _REFERENCE]
    name = next(name for name in names if (folder / name).is_file())
    return LatencyModel.from_json((folder / name).read_text("utf-8"), name)
