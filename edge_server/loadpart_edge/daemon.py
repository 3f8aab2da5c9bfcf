"""The daemon's life: open models, bind, start workers, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from loadpart_common.metrics_server import MetricsServer
from loadpart_common.store.model_store import ModelStore
from loadpart_common.wire.limits import channel_options
from loadpart_common.wire.methods import SERVICE
from loadpart_edge.metrics import Metrics
from loadpart_edge.rpc.service import OffloadService
from loadpart_edge.scheduling.scheduler import Scheduler
from loadpart_edge.scheduling.status import StatusBoard
from loadpart_edge.served_models import ServedModels
from loadpart_edge.workers.base import Prepared
from loadpart_edge.workers.local.process import LocalWorkers

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from loadpart_common.errors import OffloadError
    from loadpart_common.wire.endpoint import Endpoint
    from loadpart_edge.settings import Settings
    from loadpart_edge.workers.base import Preparation, Worker

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_GRACE_SECONDS = 1.0

log = logging.getLogger(__name__)


class Daemon:
    """An edge server, from start to end."""

    def __init__(self, settings: Settings, on_progress: Callable[[int, int], None]) -> None:
        """Makes a daemon.

        Args:
            settings: Its settings.
            on_progress: Called with the number of tails built so far and that of all, while it starts.
        """
        self._settings = settings
        self._on_progress = on_progress
        self._metrics = Metrics()
        self._models = ServedModels(ModelStore(settings.store), settings)
        self._health = health.aio.HealthServicer()
        self._to_build = 0
        self._built = 0

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT.

        Raises:
            SettingsError: An address cannot be bound.
            OffloadError: The workers cannot start.
        """
        settings = self._settings
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        scheduler = self._make_scheduler()
        board = StatusBoard(scheduler, settings.status_period_seconds, lambda: self._models.version)
        scheduler.on_change = board.queue_changed
        self._metrics.follow(scheduler, board)
        service = OffloadService(
            self._models, scheduler, board, self._metrics, max_message_bytes=settings.max_message_bytes
        )
        await self._set_health(_NOT_SERVING)
        server = grpc.aio.server(
            options=[
                *channel_options(settings.max_message_bytes),
                ("grpc.so_reuseport", 0),  # on by default: two daemons would share a port without an error
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
            ]
        )
        server.add_generic_rpc_handlers((service.handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        with self._metrics_server() as metrics_address:
            endpoint = settings.listen.bind(server)
            await server.start()
            board.start()
            try:
                if await _unless(stop, scheduler.start()):
                    gc.freeze()  # modules and manifests live as long as the process; collections skip them now
                    service.ready = True
                    await self._set_health(_SERVING)
                    print(self._ready_line(endpoint, metrics_address), flush=True)  # the promised line
                    await stop.wait()
                    log.info("draining: %d running, %d waiting", scheduler.running, scheduler.queue_length)
                    await self._set_health(_NOT_SERVING)
                    board.draining = True
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(settings.drain_seconds):
                            await scheduler.drained()
            finally:
                await board.close()
                await server.stop(_GRACE_SECONDS)
                await scheduler.close()
        log.info("stopped")

    def _make_scheduler(self) -> Scheduler:
        settings, preparations = self._settings, self._models.preparations()
        self._to_build = len(preparations) * settings.workers
        workers = LocalWorkers(
            self._models.stored,
            workers=settings.workers,
            threads=settings.worker_threads,
            max_message_bytes=settings.max_message_bytes,
            segment_memory_bytes=settings.segment_memory_bytes,
            log_level=settings.log_level,
        )
        return Scheduler(
            workers,
            seats=settings.workers,
            queue_limit=settings.queue_limit,
            preparations=preparations,
            canary=self._models.canary(),
            on_prepared=self._on_prepared,
            on_restart=self._metrics.worker_restarts.inc,
        )

    def _on_prepared(self, worker: Worker, preparation: Preparation, answer: Prepared | OffloadError) -> None:
        if isinstance(answer, Prepared):
            self._models.prepared(worker.host, preparation, answer.seconds)
            self._metrics.worker_memory.labels(worker.label).set(answer.resident_bytes)
        self._built += 1
        self._on_progress(self._built, self._to_build)

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE, *(model.name for model in self._models)):
            await self._health.set(name, status)

    def _ready_line(self, endpoint: Endpoint, metrics_address: str | None) -> str:
        metrics = f" metrics=http://{metrics_address}/metrics" if metrics_address else ""
        models = ",".join(model.name for model in self._models)
        return f"loadpart-edge ready: listening={endpoint}{metrics} models={models}"

    @contextlib.contextmanager
    def _metrics_server(self) -> Iterator[str | None]:
        """Serves the metrics, if asked for, within the block; gives the actual address."""
        if self._settings.metrics_listen is None:
            yield None
            return
        with contextlib.closing(MetricsServer(self._settings.metrics_listen, self._metrics.registry)) as server:
            yield server.address


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Does work unless the event comes first; whether it was done."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        working.result()
        return True
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    return False
