"""Fits a latency model to timed segments, by non-negative least squares on relative errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.errors import SettingsError
from loadpart_common.latency.features import OTHER, SEGMENT
from loadpart_common.latency.model import LatencyModel
from loadpart_common.machine import machine_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadpart_common.engines.base import EngineSetup

_ROUNDS = 8
_SMALL_ERROR = 0.05
_PLAIN = {"calls", "input_bytes", "output_bytes"}


@dataclass(frozen=True)
class Sample:
    """A piece of a network that was timed.

    Attributes:
        amounts: By family and feature, what its seconds are linear in.
        seconds: Median of several runs.
    """

    amounts: Mapping[tuple[str, str], float]
    seconds: float


def fit(samples: list[Sample], setup: EngineSetup) -> LatencyModel:
    """The latency model that explains samples best.

    Args:
        samples: What was timed.
        setup: The engine that ran them.
    """
    coefficients, error = _least_squares(samples)
    # Operators that no sample has are taken for a mean of the plain ones, which all have the same features.
    plain = {family for family, row in coefficients.items() if family != SEGMENT and row.keys() == _PLAIN}
    pooled, _ = _least_squares([Sample(_pooled(sample.amounts, plain), sample.seconds) for sample in samples])
    coefficients[OTHER] = pooled[OTHER]
    return LatencyModel(coefficients, machine_name(), setup.version, setup.threads, len(samples), error)


def _pooled(amounts: Mapping[tuple[str, str], float], plain: set[str]) -> dict[tuple[str, str], float]:
    """Amounts with all plain families as one."""
    pooled: dict[tuple[str, str], float] = {}
    for (family, feature), amount in amounts.items():
        key = (OTHER if family in plain else family, feature)
        pooled[key] = pooled.get(key, 0.0) + amount
    return pooled


def _least_squares(samples: list[Sample]) -> tuple[dict[str, dict[str, float]], float]:
    """Coefficients of 0 or more by family and feature, and the mean error that they leave, as a share.

    Errors are relative, since a millisecond matters less in a hundred than in two. Each round weighs a sample by the
    inverse of the error that the last one left it, which comes near to least absolute deviations: a piece that a noisy
    moment made slow does not count for more than others (iteratively reweighted least squares).
    """
    try:
        from scipy.optimize import nnls
    except ImportError as error:
        raise SettingsError("calibrating needs SciPy: expected 'pip install loadpart[calibrate]'") from error
    keys = sorted({key for sample in samples for key in sample.amounts})
    rows = np.array([[sample.amounts.get(key, 0.0) / sample.seconds for key in keys] for sample in samples])
    scale = rows.max(axis=0)
    rows /= scale
    weights = np.ones(len(samples))
    for _ in range(_ROUNDS):
        solution, _ = nnls(rows * weights[:, None], weights)
        errors = np.abs(rows @ solution - 1)
        weights = 1 / np.sqrt(np.maximum(errors, _SMALL_ERROR))
    coefficients: dict[str, dict[str, float]] = {}
    for (family, feature), value in zip(keys, solution / scale, strict=True):
        coefficients.setdefault(family, {})[feature] = float(value)
    return coefficients, float(errors.mean())
