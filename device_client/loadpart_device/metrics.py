"""Prometheus metrics of the device. Every name and its meaning is here, and in the README."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from loadpart_common.metrics_server import MetricsServer
from loadpart_device.result import PHASES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client.core import Metric

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
            "loadpart_device_plans", "Plans run, by model, location, cut, codec and server (empty when none)",
            ["model", "location", "cut", "codec", "server"], registry=registry,
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
        registry.register(_Servers(fleet))
        self._server = MetricsServer(listen, registry)
        self.address = self._server.address

    def succeeded(self, result: Result) -> None:
        """Counts an inference."""
        plan, timings = result.plan, result.timings
        self._inferences.labels(self._model, "").inc()
        self._plans.labels(self._model, plan.location, str(plan.cut), plan.codec, plan.server).inc()
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


class _Servers(Collector):
    """What is known of each server, for as long as it is one."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        for name, help_text, figure in _FIGURES:
            family = GaugeMetricFamily(f"loadpart_device_{name}", help_text, labels=["server"])
            for edge in self._fleet:
                family.add_metric([edge.name], figure(edge))
            yield family


def _usable(edge: Edge) -> float:
    return float(edge.unavailable() is None)


def _doubts(edge: Edge) -> float:
    return edge.connection.doubts.count


def _uplink_bytes_per_second(edge: Edge) -> float:
    reading = edge.link.reading
    return 1 / reading.seconds_per_byte if reading else math.nan


def _round_trip_seconds(edge: Edge) -> float:
    reading = edge.link.reading
    return reading.round_trip_seconds if reading else math.nan


def _slow_down(edge: Edge) -> float:
    load = edge.load
    return load.slow_down if load else math.nan


def _backlog_seconds(edge: Edge) -> float:
    load = edge.load
    return load.backlog_seconds if load else math.nan


_FIGURES: list[tuple[str, str, Callable[[Edge], float]]] = [
    ("server_usable", "Whether a server may be asked now, 1 or 0", _usable),
    ("server_slow_down", "A server's slow-down, as it is expected to be now; NaN when unknown", _slow_down),
    ("server_backlog_seconds", "A server's backlog, as it is expected to be now; NaN when unknown", _backlog_seconds),
    ("uplink_bytes_per_second", "Bandwidth of the uplink to a server; NaN when unknown", _uplink_bytes_per_second),
    ("round_trip_seconds", "Round trip of a small request to a server; NaN when unknown", _round_trip_seconds),
    ("doubts", "Figures of a server that were ignored, because they cannot be true", _doubts),
]
