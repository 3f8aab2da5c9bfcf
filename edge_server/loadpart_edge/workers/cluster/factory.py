"""Makes workers on the nodes of a Ray cluster, and knows how many there is room for."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from loadpart_edge.workers.cluster import environment
from loadpart_edge.workers.cluster.environment import OWN

environment.prepare()

import ray  # noqa: E402
from ray._private.state import state  # noqa: E402
from ray.exceptions import RayError  # noqa: E402

from loadpart_common.errors import SettingsError  # noqa: E402
from loadpart_edge.workers.cluster.agent import Agent  # noqa: E402
from loadpart_edge.workers.cluster.worker import ClusterWorker, Files  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loadpart_edge.workers.base import RunnableModel, WorkerOptions
    from loadpart_edge.workers.cluster.agent import Place

_OWN_ADDRESS = "127.0.0.2"
"""Of the node of an own cluster: Ray takes 127.0.0.1 for "find out", and would listen to the network."""

_OWN_OBJECT_STORE_BYTES = 100 << 20
_NAMESPACE = "loadpart"
_PERIOD_SECONDS = 0.5

_Result = TypeVar("_Result")

log = logging.getLogger(__name__)


class Nodes(NamedTuple):
    """The nodes at a time.

    Attributes:
        slots: Workers that the nodes have resources for, those that they have among them.
        leaving: Ids of nodes that are taken away soon.
    """

    slots: int
    leaving: frozenset[str]


class ClusterWorkers:
    """Starts workers on a cluster; see `workers.base.WorkerFactory`."""

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
        self._options = options._replace(threads=options.threads or int(resources.get("CPU", 0)))
        self._workers: set[ClusterWorker] = set()
        self._numbers: set[tuple[str, int]] = set()  # of agents, by the addresses of their nodes
        self._following: asyncio.Task[None] | None = None
        # Ray's own calls block while its control service is away. The processes of an own cluster end with the thread
        # that started them.
        self._thread = ThreadPoolExecutor(1, "loadpart-ray")
        self.slots = 0

    async def connect(self) -> None:
        """Connects to the cluster, or starts an own one, and follows its nodes.

        Raises:
            SettingsError: There is no cluster at the address, or it lets nobody in without its token.
        """
        try:
            await self._call(self._connect)
        except (RayError, ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            raise SettingsError(f"cluster: cannot connect to the Ray cluster {self._address!r}: {error}") from error
        self._following = asyncio.create_task(self._follow())

    async def start(self, seat: int) -> ClusterWorker:
        """Starts a worker where there is room; waits for that, if there is none."""
        cpus, gpus = self._resources.get("CPU", 0), self._resources.get("GPU", 0)
        others = {name: amount for name, amount in self._resources.items() if name not in ("CPU", "GPU")}
        options = {"max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        agent: Any = ray.remote(Agent).options(num_cpus=cpus, num_gpus=gpus, resources=others, **options).remote()
        with contextlib.ExitStack() as undoing:
            undoing.callback(self._thread.submit, ray.kill, agent)
            place = await agent.place.remote()
            _check_version(place)
            number = next(each for each in itertools.count() if (place.address, each) not in self._numbers)
            self._numbers.add((place.address, number))
            undoing.callback(self._numbers.discard, (place.address, number))
            await agent.start.remote(self._options, number)
            undoing.pop_all()
        log.info("worker %d is on node %s (%s)", seat, place.address, place.node[:12])

        def end(worker: ClusterWorker) -> None:
            self._workers.discard(worker)
            self._numbers.discard((place.address, number))

        worker = ClusterWorker(agent, seat, place, self._files, end)
        self._workers.add(worker)
        return worker

    async def close(self) -> None:
        """Leaves the cluster; an own one ends."""
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self._call(ray.shutdown)
        self._thread.shutdown(wait=False)

    async def _follow(self) -> None:
        while True:
            try:
                nodes = await self._call(self._nodes)
            except Exception as error:  # its control service is away: workers go on without it
                log.warning("the cluster's nodes are not known: %s", error)
            else:
                self.slots = nodes.slots
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
                "resources": {name: amount for name, amount in self._resources.items() if name not in ("CPU", "GPU")},
                "object_store_memory": _OWN_OBJECT_STORE_BYTES,
            }  # fmt: skip
        ray.init(**how, namespace=_NAMESPACE, configure_logging=False, log_to_driver=True)

    def _nodes(self) -> Nodes:
        leaving = frozenset(state.get_draining_nodes())
        slots = 0
        for node in ray.nodes():  # type: ignore[no-untyped-call]
            if node["Alive"] and node["NodeID"] not in leaving:
                slots += int(min(node["Resources"].get(name, 0) // amount for name, amount in self._resources.items()))
        return Nodes(slots, leaving)

    async def _call(self, function: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def _check_version(place: Place) -> None:
    """Refuses a node whose software may understand calls otherwise.

    Raises:
        SettingsError: It has another version.
    """
    if place.version != version("loadpart"):
        raise SettingsError(f"node {place.address} has loadpart {place.version}, expected {version('loadpart')}")
