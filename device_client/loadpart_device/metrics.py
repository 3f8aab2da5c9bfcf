"""Prometheus metrics of the device. Every name and its meaning is here, and in the README."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from loadpart_common.metrics_server import MetricsServer
from loadpart_device.result import PHASES

if TYPE_CHECKING:
    from loadpart_common.errors import OffloadError
    from loadpart_device.edges.edge import Edge
    from loadpart_device.edges.fleet import Fleet
    from loadpart_device.hedging import Hedging
    from loadpart_device.result import Result

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """The device's metrics, in a registry of their own, and the HTTP server that shows them."""

    def __init__(self, model: str, fleet: Fleet, hedging: Hedging, listen: str) -> None:
        """Starts to serve the metrics.

        Args:
            model: Name of the model.
            fleet: The servers, whose links are shown.
            hedging: Knows what was wasted.
            listen: `HOST:PORT`.

        Raises:
            SettingsError: The address is none, or cannot be bound.
        """
        registry = CollectorRegistry()
        self._model = model
        self._inferences = Counter(
            "loadpart_device_inferences", "Inferences, by model and error (empty when none)", ["model", "error"],
            registry=registry,
        )  # fmt: skip
        self._plans = Counter(
            "loadpart_device_plans", "Plans run, by model, location, cut and codec",
            ["model", "location", "cut", "codec"], registry=registry,
        )  # fmt: skip
        self._phases = Histogram(
            "loadpart_device_phase_seconds",
            f"Seconds an inference spent in a phase: {', '.join(PHASES)}",
            ["model", "phase"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._hedged = Counter(
            "loadpart_device_hedged",
            "Inferences in which the device began its own tail while the answer was out, by who was first",
            ["model", "first"], registry=registry,
        )  # fmt: skip
        self._resumed = Counter(
            "loadpart_device_resumed",
            "Inferences that the device finished because the server failed, refused or was late",
            ["model"], registry=registry,
        )  # fmt: skip
        self._late = Counter(
            "loadpart_device_late", "Inferences that came after their deadline", ["model"], registry=registry
        )
        Gauge(
            "loadpart_device_hedging_wasted_seconds", "Seconds that went into tails whose outputs were not needed",
            registry=registry,
        ).set_function(lambda: hedging.wasted_seconds)  # fmt: skip
        doubts = Gauge(
            "loadpart_device_doubts", "Figures of a server that were ignored, because they cannot be true",
            ["server"], registry=registry,
        )  # fmt: skip
        uplink = Gauge(
            "loadpart_device_uplink_bytes_per_second", "Bandwidth of the uplink to a server; NaN when unknown",
            ["server"], registry=registry,
        )  # fmt: skip
        round_trip = Gauge(
            "loadpart_device_round_trip_seconds", "Round trip of a small request to a server; NaN when unknown",
            ["server"], registry=registry,
        )  # fmt: skip
        for edge in fleet:
            doubts.labels(edge.name).set_function(partial(_doubts, edge))
            uplink.labels(edge.name).set_function(partial(_uplink_bytes_per_second, edge))
            round_trip.labels(edge.name).set_function(partial(_round_trip_seconds, edge))
        self._server = MetricsServer(listen, registry)
        self.address = self._server.address

    def succeeded(self, result: Result) -> None:
        """Counts an inference."""
        plan, timings = result.plan, result.timings
        self._inferences.labels(self._model, "").inc()
        self._plans.labels(self._model, plan.location, str(plan.cut), plan.codec).inc()
        if result.hedged:
            self._hedged.labels(self._model, "device" if result.resumed else "server").inc()
        if result.resumed:
            self._resumed.labels(self._model).inc()
        if result.late:
            self._late.labels(self._model).inc()
        for phase in PHASES:
            self._phases.labels(self._model, phase).observe(getattr(timings, phase))

    def failed(self, error: OffloadError) -> None:
        """Counts an inference that gave an error."""
        self._inferences.labels(self._model, error.code).inc()

    def close(self) -> None:
        """Stops serving."""
        self._server.close()


def _doubts(edge: Edge) -> float:
    return edge.connection.doubts.count


def _uplink_bytes_per_second(edge: Edge) -> float:
    reading = edge.link.reading
    return 1 / reading.seconds_per_byte if reading else math.nan


def _round_trip_seconds(edge: Edge) -> float:
    reading = edge.link.reading
    return reading.round_trip_seconds if reading else math.nan
