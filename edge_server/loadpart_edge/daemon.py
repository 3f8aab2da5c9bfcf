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
from prometheus_client import start_http_server

from loadpart_common.errors import SettingsError
from loadpart_common.store.model_store import ModelStore
from loadpart_common.wire.framing import SERVICE, channel_options
from loadpart_edge.metrics import Metrics
from loadpart_edge.rpc.service import OffloadService
from loadpart_edge.scheduling.scheduler import Scheduler
from loadpart_edge.scheduling.status import StatusBoard
from loadpart_edge.served_models import ServedModels

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from loadpart_edge.settings import Settings
    from loadpart_edge.workers.local.messages import Prepare, Prepared

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
        self._preparations: list[Prepare] = []
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
        canary = self._models.canary()
        self._preparations = list(dict.fromkeys([*self._models.preparations(), canary]))
        scheduler = Scheduler(settings, self._preparations, canary=canary, on_prepared=self._on_prepared)
        board = StatusBoard(scheduler, settings.status_period_seconds, lambda: self._models.version)
        scheduler.on_change = board.queue_changed
        self._metrics.follow(scheduler, board)
        service = OffloadService(settings, self._models, scheduler, board, self._metrics)
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
            address = _bind(server, settings.listen)
            await server.start()
            board.start()
            try:
                if await _unless(stop, scheduler.start()):
                    gc.freeze()  # modules and manifests stay: collections need not look at them
                    service.ready = True
                    await self._set_health(_SERVING)
                    print(self._ready_line(address, metrics_address), flush=True)  # the promised line
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

    def _on_prepared(self, preparation: Prepare, prepared: Prepared | None) -> None:
        if prepared is not None:
            self._models.get(preparation.model).prepared(preparation.cut, prepared.seconds)
            self._metrics.worker_memory.set(prepared.resident_bytes)
        self._built += 1
        self._on_progress(self._built, len(self._preparations) * self._settings.workers)

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE, *(model.name for model in self._models)):
            await self._health.set(name, status)

    def _ready_line(self, address: str, metrics_address: str | None) -> str:
        metrics = f" metrics=http://{metrics_address}/metrics" if metrics_address else ""
        models = ",".join(model.name for model in self._models)
        return f"loadpart-edge ready: listening={address}{metrics} models={models}"

    @contextlib.contextmanager
    def _metrics_server(self) -> Iterator[str | None]:
        """Serves the metrics, if asked for, within the block; gives the actual address."""
        if self._settings.metrics_listen is None:
            yield None
            return
        host, _, port = self._settings.metrics_listen.rpartition(":")
        try:
            server, thread = start_http_server(int(port), host.strip("[]"), self._metrics.registry)
        except OSError as error:
            raise SettingsError(
                f"metrics_listen: cannot listen on {self._settings.metrics_listen}: {error.strerror}"
            ) from error
        try:
            yield f"{host}:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _bind(server: grpc.aio.Server, listen: str) -> str:
    """Binds an address and gives the actual one."""
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise SettingsError(f"listen: cannot listen on {listen}: is the port in use? ({error})") from error
    return f"{listen.rpartition(':')[0]}:{port}"


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
