"""The end of a cluster worker that is on the node: an actor with a worker process of its own.

The process is the same as a local worker, confined likewise: it computes on what strangers sent and has no way into the
cluster. The actor only hands over, and is what Ray places, watches and moves.
"""

from __future__ import annotations

import asyncio
import os
import pickle
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import ray

from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.registry import ENGINES
from loadpart_common.errors import OffloadError
from loadpart_common.logs import log_to_stderr
from loadpart_common.machine import usable_cores
from loadpart_edge.workers.cluster.messages import unpack
from loadpart_edge.workers.cluster.node_store import NodeStore
from loadpart_edge.workers.local.messages import Failed
from loadpart_edge.workers.local.process import LocalWorkers

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.store.model_store import StoredModel
    from loadpart_edge.workers.base import Job, Outcome, Preparation, Prepared, WorkerOptions
    from loadpart_edge.workers.cluster.node_store import ModelFile
    from loadpart_edge.workers.local.process import WorkerProcess

_Answer = TypeVar("_Answer")


class Place(NamedTuple):
    """Where an agent is.

    Attributes:
        address: Address of the node.
        node: Ray's id of it.
        version: Version of this software there.
    """

    address: str
    node: str
    version: str


class NodeModel(NamedTuple):
    """A model on the node, as its worker process asks for it; see `workers.base.RunnableModel`."""

    stored: StoredModel
    setup: EngineSetup


class Agent:
    """What the daemon calls; it sends one job at a time, and may cancel that one meanwhile."""

    def __init__(self) -> None:
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray's, by the actor's share of processors; the process has its own
        self._store = NodeStore()
        self._models: dict[str, NodeModel] = {}
        self._worker: WorkerProcess | None = None
        self._job: Job | None = None

    async def place(self) -> Place:
        """Where it is."""
        address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        return Place(address, ray.get_runtime_context().get_node_id(), version("loadpart"))

    async def start(self, options: WorkerOptions, share: int) -> None:
        """Starts the worker process.

        Args:
            options: How it computes; with 0 threads the workers share out the node's cores.
            share: For how many workers the node has room.
        """
        log_to_stderr(options.log_level, "agent[%(process)d]")
        options = options._replace(threads=options.threads or max(1, usable_cores() // share))
        self._worker = await LocalWorkers(self._models.__getitem__, options, workers=None).start(0)

    async def has(self, model: ModelFile) -> bool:
        """Whether the node has the file of a model; if so, jobs for it may come."""
        stored = await asyncio.to_thread(self._store.find, model.digest)
        if stored is None:
            return False
        setup = EngineSetup(ENGINES[model.engine], 1, model.precision, model.provider)
        self._models[model.digest] = NodeModel(stored, setup)
        return True

    async def receive(self, model: ModelFile, piece: bytes) -> Failed | None:
        """Takes in the next piece of a model's file; an empty one is the end."""
        try:
            await asyncio.to_thread(self._store.receive, model, piece)
        except OffloadError as error:
            return Failed(error.code, str(error))
        return None

    async def prepare(self, preparation: Preparation) -> Prepared | Failed:
        """Builds and times a tail."""
        return await self._ask(lambda worker, answer: worker.prepare(preparation, answer))

    async def run(self, packed: bytes) -> bytes:
        """Runs a job; gives its outcome pickled."""
        self._job = job = unpack(packed)
        outcome: Outcome | Failed = await self._ask(lambda worker, answer: worker.run(job, answer))
        return pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)

    async def cancel(self) -> None:
        """Tells that the outcome of the job is not wanted any more."""
        if self._worker is not None and self._job is not None:
            self._worker.cancel(self._job)

    async def lost(self) -> None:
        """Answers when the worker process is gone."""
        assert self._worker is not None
        await asyncio.shield(self._worker.lost)

    async def close(self) -> None:
        """Ends the worker process when it has done what it does."""
        if self._worker is not None:
            await self._worker.close()

    async def _ask(
        self, send: Callable[[WorkerProcess, Callable[[_Answer | OffloadError], None]], None]
    ) -> _Answer | Failed:
        assert self._worker is not None
        answered: asyncio.Future[_Answer | OffloadError] = asyncio.get_running_loop().create_future()
        try:
            send(self._worker, answered.set_result)
        except OffloadError as error:
            return Failed(error.code, str(error))
        answer = await answered  # without end if the process is lost: then the daemon hears of that, and ends the actor
        return Failed(answer.code, str(answer)) if isinstance(answer, OffloadError) else answer
