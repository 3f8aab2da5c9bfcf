"""Makes workers on the nodes of a Ray cluster, and knows how many there is room for.

It imports Ray, which reads settings then: whoever imports it calls `environment.prepare` first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import ray
from ray._private.state import state
from ray._private.worker import global_worker
from ray.exceptions import RayError

from loadpart_common.errors import InternalError, SettingsError
from loadpart_edge.workers.cluster.agent import Agent
from loadpart_edge.workers.cluster.environment import OWN
from loadpart_edge.workers.cluster.ray_thread import RayThread
from loadpart_edge.workers.cluster.worker import ClusterWorker, Files

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loadpart_edge.workers.base import RunnableModel, WorkerOptions
    from loadpart_edge.workers.cluster.agent import Place

_OWN_ADDRESS = "127.0.0.1"
"""Of the node of an own cluster, which has Ray listen to this machine alone."""

_OWN_OBJECT_STORE_BYTES = 100 << 20
_NAMESPACE = "loadpart"
_PERIOD_SECONDS = 0.5
_CONNECT_SECONDS, _START_SECONDS, _END_SECONDS = 30.0, 60.0, 5.0

log = logging.getLogger(__name__)


class Nodes(NamedTuple):
    """The nodes at a time.

    Attributes:
        slots: Workers that each node has resources for, those that it has among them, by its id.
        leaving: Ids of nodes that are taken away soon.
        has_own: Whether that of the daemon is among them.
    """

    slots: dict[str, int]
    leaving: frozenset[str]
    has_own: bool


class ClusterWorkers:
    """Starts workers on a cluster; see `workers.base.WorkerFactory`.

    Attributes:
        excluded: Done when the node of the daemon is lost, and with it the way into the cluster.
    """

    def __init__(
        self,
        address: str,
        find_model: Callable[[str], RunnableModel],
        options: WorkerOptions,
        *,
        resources: Mapping[str, float],
    ) -> None:
        """Makes a factory; `connect` finds the cluster.

        Args:
            address: HOST:PORT of the cluster's control service, or `OWN`.
            find_model: Gives the model with a digest.
            options: How a worker computes, and what it may take; with 0 threads it has those of the processors that it
                takes, or else of all of its node.
            resources: What a worker takes of its node, such as {"CPU": 4} or {"loadpart": 1}.
        """
        self._address = address
        self._files = Files(find_model)
        self._resources = dict(resources)
        self._others = {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")}
        self._options = options._replace(threads=options.threads or int(resources.get("CPU", 0)))
        self._workers: set[ClusterWorker] = set()
        self._slots: dict[str, int] = {}  # by node
        self._following: asyncio.Task[None] | None = None
        self._ray = RayThread()
        self._agents: Any = None  # makes them; Ray's
        self._is_known = True
        self.excluded: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def slots(self) -> int:
        """Workers that there is room for."""
        return sum(self._slots.values())

    async def connect(self) -> None:
        """Connects to the cluster, or starts an own one, and follows its nodes.

        Raises:
            SettingsError: There is no cluster at the address, or it lets nobody in without its token.
        """
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._ray.call(self._connect)
        except TimeoutError as error:
            self._ray.abandon(1)
            raise self._refused(f"no answer within {_CONNECT_SECONDS:g} s") from error
        except (RayError, OSError, ValueError, RuntimeError) as error:
            raise self._refused(error) from error
        self._following = asyncio.create_task(self._follow())

    def _refused(self, why: object) -> SettingsError:
        return SettingsError(
            f"cluster: cannot connect to the Ray cluster {self._address!r}: {why}; "
            "where there are lines of Ray's above, they say more, such as that its token is another one"
        )

    async def start(self, seat: int) -> ClusterWorker:
        """Starts a worker where there is room; waits for that, if there is none.

        Raises:
            InternalError: Its node was lost meanwhile, or hangs.
            SettingsError: Its node has another version of this software.
        """
        try:
            return await self._start(seat)
        except RayError as error:
            raise InternalError(f"its actor does not start: {' '.join(str(error).split())}") from error
        except TimeoutError as error:
            raise InternalError(f"its actor does not start a worker within {_START_SECONDS:g} s") from error

    async def _start(self, seat: int) -> ClusterWorker:
        agent = await self._ray.call(self._agents.remote)
        with contextlib.ExitStack() as undoing:
            undoing.callback(self._ray.send, partial(ray.kill, agent))
            place = await agent.place.remote()
            _check_version(place)
            async with asyncio.timeout(_START_SECONDS):
                await agent.start.remote(self._options, max(1, self._slots.get(place.node, 1)))
            undoing.pop_all()
        log.info("worker %d is on node %s (%s)", seat, place.address, place.node[:12])

        def end(worker: ClusterWorker) -> None:
            self._ray.send(partial(ray.kill, agent))
            self._workers.discard(worker)

        worker = ClusterWorker(agent, seat, place, self._files, end)
        self._workers.add(worker)
        return worker

    async def close(self, code: int) -> None:
        """Leaves the cluster; an own one ends.

        Args:
            code: The exit code that the process will have.
        """
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._ray.call(ray.shutdown)
        except TimeoutError:
            log.warning("the cluster's control service does not answer: it is left without its knowing")
            self._ray.abandon(code)

    async def _follow(self) -> None:
        while True:
            try:
                nodes = await self._ray.call(self._nodes)
            except Exception as error:  # its control service is away: workers go on without it
                if self._is_known:
                    log.warning("the cluster's nodes are not known, and those that were stay: %s", error)
                self._is_known = False
            else:
                self._is_known = True
                self._slots = nodes.slots
                if not nodes.has_own and not self.excluded.done():
                    self.excluded.set_result(None)
                for worker in self._workers:
                    if worker.place.node in nodes.leaving and not worker.leaving.done():
                        log.info("node %s is taken away: worker %s leaves it", worker.host, worker.label)
                        worker.leaving.set_result(None)
            await asyncio.sleep(_PERIOD_SECONDS)

    def _connect(self) -> None:
        how: dict[str, Any] = {"address": self._address}
        if self._address == OWN:
            how = {
                "address": "local", "_node_ip_address": _OWN_ADDRESS, "include_dashboard": False,
                "resources": self._others,
                "object_store_memory": _OWN_OBJECT_STORE_BYTES + 2 * self._options.max_message_bytes,
            }  # fmt: skip
        _let_the_daemon_log()
        ray.init(**how, namespace=_NAMESPACE, configure_logging=False, log_to_driver=False)
        # Two threads of Ray's would print here what others say, and each take a whole core of the daemon's while the
        # control service is away. The one is never begun without `log_to_driver`; the other ends when it next looks.
        global_worker.threads_stopped.set()
        self._agents = ray.remote(Agent).options(
            num_cpus=self._resources.get("CPU", 0), num_gpus=self._resources.get("GPU", 0), resources=self._others,
            max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD", enable_task_events=False,
        )  # fmt: skip

    def _nodes(self) -> Nodes:
        leaving = frozenset(state.get_draining_nodes())
        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}  # type: ignore[no-untyped-call]
        slots = {
            node: int(min(resources.get(name, 0) // amount for name, amount in self._resources.items()))
            for node, resources in alive.items()
            if node not in leaving
        }
        return Nodes(slots, leaving, ray.get_runtime_context().get_node_id() in alive)


def _let_the_daemon_log() -> None:
    """Has what Ray says in this process written as the daemon's own log."""
    ray_log = logging.getLogger("ray")
    ray_log.handlers.clear()
    ray_log.propagate = True
    # It could not take over SIGTERM, which is the daemon's.
    logging.getLogger("ray._private.worker").addFilter(lambda record: "SIGTERM handler" not in record.getMessage())


def _check_version(place: Place) -> None:
    """Refuses a node whose software may understand calls otherwise.

    Raises:
        SettingsError: It has another version.
    """
    if place.version != version("loadpart"):
        raise SettingsError(f"node {place.address} has loadpart {place.version}, expected {version('loadpart')}")
