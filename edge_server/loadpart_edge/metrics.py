"""Prometheus metrics of the daemon. Every name and its meaning is here, and in the README."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import grpc

    from loadpart_common.planning.plan import PlanKey
    from loadpart_edge.scheduling.hosts import Hosts
    from loadpart_edge.scheduling.job import Served
    from loadpart_edge.scheduling.scheduler import Scheduler
    from loadpart_edge.scheduling.status import StatusBoard

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Metrics:
    """The daemon's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "loadpart_edge_requests", "Requests answered, by method and gRPC status", ["method", "code"],
            registry=self.registry,
        )  # fmt: skip
        self.plans = Counter(
            "loadpart_edge_plans", "Tails run, by model, cut and codec", ["model", "cut", "codec"],
            registry=self.registry,
        )  # fmt: skip
        self.received = Counter(
            "loadpart_edge_received_bytes",
            "Tensor bytes received, as encoded, by model",
            ["model"],
            registry=self.registry,
        )
        self.phases = Histogram(
            "loadpart_edge_phase_seconds", "Seconds a request spent in a phase: queue, build, decode, tail, total",
            ["model", "phase"], buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.worker_restarts = Counter(
            "loadpart_edge_worker_restarts", "Workers that died or hung and were replaced", registry=self.registry
        )
        self.dropped = Counter(
            "loadpart_edge_dropped", "Jobs dropped before they ran, because their deadlines had passed",
            registry=self.registry,
        )  # fmt: skip
        self.worker_memory = Gauge(
            "loadpart_edge_worker_resident_bytes", "Resident memory of a worker when it last built a tail", ["worker"],
            registry=self.registry,
        )  # fmt: skip

    def answered(self, method: str, code: grpc.StatusCode) -> None:
        """Counts an answer."""
        self.requests.labels(method, code.name).inc()

    def inferred(self, model: str, plan: PlanKey, nbytes: int, served: Served, total_seconds: float) -> None:
        """Counts a request that was answered."""
        self.plans.labels(model, str(plan.cut), plan.codec).inc()
        self.received.labels(model).inc(nbytes)
        for phase, seconds in (
            ("queue", served.queue_seconds),
            ("build", served.outcome.build_seconds),
            ("decode", served.outcome.decode_seconds),
            ("tail", served.outcome.tail_seconds),
            ("total", total_seconds),
        ):
            self.phases.labels(model, phase).observe(seconds)

    def follow(self, scheduler: Scheduler, board: StatusBoard, held_bytes: Callable[[], int]) -> None:
        """Has the gauges read the scheduler, the status and the door when they are scraped."""

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"loadpart_edge_{name}", text, registry=self.registry)

        self.registry.register(_HostMetrics(scheduler.hosts))
        gauge("held_bytes", "Bytes of requests that are held").set_function(held_bytes)
        gauge("queue_length", "Jobs waiting for a worker").set_function(lambda: scheduler.queue_length)
        gauge("workers", "Workers that take jobs").set_function(lambda: scheduler.live_workers)
        gauge("tails_to_build", "Tails that workers have yet to build before they are at full strength").set_function(
            lambda: scheduler.tails_to_build
        )
        gauge("running", "Jobs that workers run").set_function(lambda: scheduler.running)
        gauge("backlog_seconds", "Predicted wait of a job of a device with none waiting").set_function(
            lambda: scheduler.backlog_seconds
        )
        gauge("slow_down", "Measured over predicted tail time").set_function(lambda: scheduler.slow_down)
        gauge("dispatch_seconds", "Seconds to a worker and back lately, beyond decoding and running").set_function(
            lambda: scheduler.hosts.dispatch_seconds
        )
        gauge("externality_seconds", "Waiting that one more job would cause to others").set_function(
            lambda: scheduler.backlog.externality_seconds
        )
        gauge("active_devices", "Devices that sent a request in the last ten seconds").set_function(
            lambda: board.devices.count
        )
        gauge("cpu_utilisation", "Share of the processor cores in use, 0 to 1").set_function(lambda: board.cpu)
        gauge("gpu_utilisation", "Share of the busiest GPU in use, 0 to 1; NaN where there is none").set_function(
            lambda: float("nan") if board.gpu is None else board.gpu
        )


class _HostMetrics(Collector):
    """Gauges of the machines that have workers when they are scraped."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Gives the gauges, with a label for each machine."""
        hosts = self._hosts.live
        for name, text, values in (
            ("workers", "Workers that take jobs, by machine", [host.workers for host in hosts]),
            ("slow_down", "Measured over predicted tail time, by machine", [host.slow_down.value for host in hosts]),
            ("dispatch_seconds", "Seconds to a worker and back, by machine", [host.dispatch.value for host in hosts]),
        ):
            family = GaugeMetricFamily(f"loadpart_edge_host_{name}", text, labels=["host"])
            for host, value in zip(hosts, values, strict=True):
                family.add_metric([host.name], value)
            yield family
