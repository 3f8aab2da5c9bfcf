"""Prometheus metrics of the device. Every name and its meaning is here, and in the README."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from loadpart_common.errors import SettingsError

if TYPE_CHECKING:
    from loadpart_common.errors import OffloadError
    from loadpart_device.edges.monitor import Monitor
    from loadpart_device.result import Result

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """The device's metrics, in a registry of their own, and the HTTP server that shows them."""

    def __init__(self, model: str, monitor: Monitor, listen: str) -> None:
        """Starts to serve the metrics.

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
            "loadpart_device_plans", "Plans run, by model, location and cut", ["model", "location", "cut"],
            registry=registry,
        )  # fmt: skip
        self._phases = Histogram(
            "loadpart_device_phase_seconds",
            "Seconds an inference spent in a phase: decide, head, encode, network, queue, tail, total",
            ["model", "phase"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        Gauge(
            "loadpart_device_uplink_bytes_per_second", "Bandwidth of the uplink; NaN when unknown", registry=registry
        ).set_function(lambda: 1 / reading.seconds_per_byte if (reading := monitor.link.reading) else float("nan"))
        Gauge(
            "loadpart_device_round_trip_seconds", "Round trip of a small request; NaN when unknown", registry=registry
        ).set_function(lambda: reading.round_trip_seconds if (reading := monitor.link.reading) else float("nan"))
        host, _, port = listen.rpartition(":")
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), registry)
        except (OSError, ValueError, OverflowError) as error:
            raise SettingsError(f"metrics_listen: expected HOST:PORT that is free, got {listen!r} ({error})") from error
        self.address = f"{host}:{self._server.server_port}"

    def succeeded(self, result: Result) -> None:
        """Counts an inference."""
        plan, timings = result.plan, result.timings
        self._inferences.labels(self._model, "").inc()
        self._plans.labels(self._model, plan.location, str(plan.cut)).inc()
        for phase in ("decide", "head", "encode", "network", "queue", "tail", "total"):
            self._phases.labels(self._model, phase).observe(getattr(timings, phase))

    def failed(self, error: OffloadError) -> None:
        """Counts an inference that gave an error."""
        self._inferences.labels(self._model, error.code).inc()

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
