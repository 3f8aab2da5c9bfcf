"""The daemon's life: open models, bind, start workers, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
from typing import TYPE_CHECKING, Any

from loadpart_common.errors import SettingsError, UnavailableError
from loadpart_common.metrics_server import MetricsServer
from loadpart_common.store.model_store import ModelStore
from loadpart_common.wire.endpoint import is_loopback
from loadpart_common.wire.methods import SERVICE
from loadpart_edge.access.clients import ClientsFile
from loadpart_edge.access.guard import Guard
from loadpart_edge.metrics import Metrics
from loadpart_edge.rpc.door import Door
from loadpart_edge.rpc.health import HealthService
from loadpart_edge.rpc.listeners import Listeners
from loadpart_edge.rpc.service import OffloadService
from loadpart_edge.scheduling.scheduler import Scheduler
from loadpart_edge.scheduling.staffing import Staffing
from loadpart_edge.scheduling.status import StatusBoard
from loadpart_edge.served_models import ServedModels
from loadpart_edge.workers.base import Prepared, WorkerOptions
from loadpart_edge.workers.cluster import environment
from loadpart_edge.workers.local.process import LocalWorkers

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from loadpart_common.errors import OffloadError
    from loadpart_common.wire.endpoint import Endpoint
    from loadpart_edge.settings import Settings
    from loadpart_edge.workers.base import Preparation, Worker, WorkerFactory
    from loadpart_edge.workers.cluster.factory import ClusterWorkers

_GRACE_SECONDS = 1.0
_STAFFING_SECONDS = 0.25
_STORE_SECONDS = 5.0
"""Period in which the store is looked at for files that were changed."""

log = logging.getLogger(__name__)


class Daemon:
    """An edge server, from start to end."""

    def __init__(self, settings: Settings, on_progress: Callable[[int, int], None]) -> None:
        """Makes a daemon.

        Args:
            settings: Its settings.
            on_progress: Called with the number of tails built so far and that of all, while it starts.

        Raises:
            OffloadError: The models or the file of clients cannot be opened.
        """
        self._settings = settings
        self._on_progress = on_progress
        self._metrics = Metrics()
        clients = ClientsFile(settings.clients) if settings.clients else None
        self._guard = Guard(clients, asks_for_certificates=settings.tls_client_ca is not None)
        self._models = ServedModels(ModelStore(settings.store), settings)
        self._to_build = 0
        self._built = 0

    async def run(self) -> None:
        """Serves until SIGTERM or SIGINT; a second signal ends it without draining.

        Raises:
            SettingsError: An address cannot be bound, or a certificate not be read.
            OffloadError: The workers cannot start.
        """
        stop, stop_now = asyncio.Event(), asyncio.Event()
        self._listen_to_signals(stop, stop_now)
        _allow_many_connections()
        if self._settings.cluster is None:
            await self._serve(stop, stop_now, self._local_workers(), None)
            return
        cluster = self._cluster_workers(self._settings.cluster)
        await cluster.connect()
        self._listen_to_signals(stop, stop_now)  # once more: Ray has put handlers of its own in their places

        def end(_: object) -> None:
            stop.set()
            stop_now.set()

        cluster.excluded.add_done_callback(end)
        code = 1
        try:
            await self._serve(stop, stop_now, cluster, cluster)
            code = int(cluster.excluded.done())
        finally:
            await cluster.close(code)
        if cluster.excluded.done():
            raise UnavailableError("cluster: the node of this machine is lost, and with it the way to all workers")

    async def _serve(
        self, stop: asyncio.Event, stop_now: asyncio.Event, workers: WorkerFactory, cluster: ClusterWorkers | None
    ) -> None:
        settings = self._settings
        scheduler = self._make_scheduler(workers, is_clustered=cluster is not None)
        board = StatusBoard(scheduler, settings.status_period_seconds, lambda: self._models.version)
        door = Door(
            self._guard,
            self._metrics,
            memory_bytes=settings.memory_bytes,
            refusals_per_second=settings.refusals_per_second,
        )
        self._metrics.follow(scheduler, board, lambda: door.held_bytes)
        service = OffloadService(
            self._models, scheduler, board, self._metrics, max_message_bytes=settings.max_message_bytes
        )
        health = HealthService(["", SERVICE, *(model.name for model in self._models)])
        scheduler.on_change = board.queue_changed
        scheduler.hosts.on_shares = self._models.weigh
        listeners = Listeners()
        with self._metrics_server() as metrics_address:
            services = (service.handler(door), health.handler(door, is_open=settings.open_health))
            endpoint, probed_at = listeners.add(settings.listen, services, settings.tls), None
            if settings.health_listen is not None:
                probes = (health.handler(door, is_open=True),)
                probed_at = listeners.add(settings.health_listen, probes, field="health_listen")
            self._warn_of_openness(endpoint, metrics_address)
            await listeners.start()
            board.start()
            watching = [asyncio.create_task(self._watch(health, service, scheduler, board))]
            try:
                if await _unless(stop, scheduler.start()):
                    if cluster is not None:
                        watching.append(asyncio.create_task(self._staff(scheduler, cluster)))
                    gc.freeze()  # modules and graphs live as long as the process; collections skip them now
                    service.ready = True
                    health.set_all(True)
                    print(self._ready_line(endpoint, metrics_address, probed_at), flush=True)  # the promised line
                    await stop.wait()
                    await self._drain(stop_now, health, scheduler, board)
                if not service.ready or stop_now.is_set() or scheduler.running:
                    scheduler.kill()
            finally:
                hurrying = asyncio.create_task(_after(stop_now, scheduler.kill))
                for task in watching:
                    task.cancel()
                await asyncio.gather(*watching, return_exceptions=True)
                await board.close()
                await listeners.stop(0 if stop_now.is_set() else _GRACE_SECONDS)
                await scheduler.close()
                hurrying.cancel()
        log.info("stopped")

    async def _drain(
        self, stop_now: asyncio.Event, health: HealthService, scheduler: Scheduler, board: StatusBoard
    ) -> None:
        """Takes no more jobs, and waits for those that it has, for so long as the settings allow."""
        log.info("draining: %d running, %d waiting", scheduler.running, scheduler.queue_length)
        health.set_all(False)
        board.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_seconds):
                await _unless(stop_now, scheduler.drained())

    def _listen_to_signals(self, stop: asyncio.Event, stop_now: asyncio.Event) -> None:
        def heard() -> None:
            (stop_now if stop.is_set() else stop).set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, heard)

    async def _watch(
        self, health: HealthService, service: OffloadService, scheduler: Scheduler, board: StatusBoard
    ) -> None:
        """Keeps health true: without a worker nothing is served, nor is a model whose file has been changed."""
        told: set[str] = set()
        while True:
            await asyncio.sleep(min(_STORE_SECONDS, self._settings.status_period_seconds))
            if not service.ready or board.draining:
                continue
            changed = {model.name for model in await asyncio.to_thread(self._models.changed_files)}
            for name in sorted(changed - told):
                log.error("model %s: its file has been changed; start the server again to serve what is there", name)
            told = changed
            is_serving = scheduler.live_workers > 0
            for name in ("", SERVICE):
                health.set(name, is_serving)
            for model in self._models:
                health.set(model.name, is_serving and model.name not in changed)

    def _warn_of_openness(self, endpoint: Endpoint, metrics_address: str | None) -> None:
        settings = self._settings
        if metrics_address and not is_loopback(metrics_address) and settings.metrics_tls is None:
            log.warning(
                "metrics at %s are in the clear and for everybody: whoever can reach it reads them", metrics_address
            )
        if not is_loopback(endpoint.target):
            if settings.tls is None:
                log.warning("%s is not encrypted: whoever is on the way can read and change what is sent", endpoint)
            if settings.tls_client_ca is None and settings.clients is None:
                log.warning("%s asks nobody for a credential: whoever can reach it can use it", endpoint)

    async def _staff(self, scheduler: Scheduler, cluster: ClusterWorkers) -> None:
        """Has as many workers on the cluster as the backlog calls for, or as there is room for."""
        settings = self._settings
        staffing = Staffing(settings.workers_min, settings.workers_max, settings.workers_down_seconds)
        while True:
            if settings.workers_max:
                wanted = staffing.wanted(scheduler.busy_workers, scheduler.waiting_seconds)
            else:
                wanted = max(cluster.slots, settings.workers_min)
            scheduler.resize(wanted)
            await asyncio.sleep(_STAFFING_SECONDS)

    def _local_workers(self) -> WorkerFactory:
        options = self._worker_options(self._settings.worker_threads)
        return LocalWorkers(self._models.with_digest, options, workers=self._settings.workers)

    def _cluster_workers(self, address: str) -> ClusterWorkers:
        environment.prepare(address)
        try:
            from loadpart_edge.workers.cluster.factory import ClusterWorkers
        except ModuleNotFoundError as error:
            raise SettingsError("cluster: expected Ray to be installed: pip install 'loadpart[cluster]'") from error
        options = self._worker_options(self._settings.threads)
        return ClusterWorkers(address, self._models.with_digest, options, resources=self._settings.worker_resources)

    def _worker_options(self, threads: int) -> WorkerOptions:
        settings = self._settings
        return WorkerOptions(threads, settings.max_message_bytes, settings.segment_memory_bytes, settings.log_level)

    def _make_scheduler(self, workers: WorkerFactory, *, is_clustered: bool) -> Scheduler:
        settings, preparations = self._settings, self._models.preparations()
        seats = settings.workers_min if is_clustered else settings.workers
        self._to_build = len(preparations) * seats
        return Scheduler(
            workers,
            seats=seats,
            waits_for_all=not is_clustered,
            queue_limit=settings.queue_limit,
            preparations=preparations,
            canary=self._models.canary(),
            on_prepared=self._on_prepared,
            on_restart=self._metrics.worker_restarts.inc,
            on_dropped=self._metrics.dropped.inc,
        )

    def _on_prepared(self, worker: Worker, preparation: Preparation, answer: Prepared | OffloadError) -> None:
        if isinstance(answer, Prepared):
            self._models.prepared(worker.host, preparation, answer.seconds)
            self._metrics.worker_memory.labels(worker.label).set(answer.resident_bytes)
        self._built += 1
        self._on_progress(min(self._built, self._to_build), self._to_build)

    def _ready_line(self, endpoint: Endpoint, metrics_address: str | None, probed_at: Endpoint | None) -> str:
        scheme = "https" if self._settings.metrics_tls else "http"
        metrics = f" metrics={scheme}://{metrics_address}/metrics" if metrics_address else ""
        health = f" health={probed_at}" if probed_at else ""
        models = ",".join(model.name for model in self._models)
        return f"loadpart-edge ready: listening={endpoint}{metrics}{health} models={models}"

    @contextlib.contextmanager
    def _metrics_server(self) -> Iterator[str | None]:
        """Serves the metrics, if asked for, within the block; gives the actual address."""
        settings = self._settings
        if settings.metrics_listen is None:
            yield None
            return
        server = MetricsServer(settings.metrics_listen, self._metrics.registry, settings.metrics_tls)
        with contextlib.closing(server):
            yield server.address


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Does work unless the event comes first; whether it was done."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    if working.cancelled():
        return False
    working.result()
    return True


async def _after(event: asyncio.Event, function: Callable[[], None]) -> None:
    await event.wait()
    function()


def _allow_many_connections() -> None:
    """Takes as many descriptors as the system allows this process; each connection has one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
