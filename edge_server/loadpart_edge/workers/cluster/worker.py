"""A worker on a node of the cluster, as the daemon sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import weakref
from typing import TYPE_CHECKING, Any

from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayError, RayTaskError

from loadpart_common.errors import InternalError, OffloadError
from loadpart_common.files import open_regular
from loadpart_edge.workers.cluster.messages import pack
from loadpart_edge.workers.cluster.node_store import ModelFile
from loadpart_edge.workers.local.messages import Failed

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable

    from loadpart_edge.workers.base import Job, OnOutcome, OnPrepared, Preparation, RunnableModel
    from loadpart_edge.workers.cluster.agent import Place

_PIECE_BYTES = 2 << 20
_LARGE_BYTES = 2 << 20
"""Beyond, a job is packed and handed to Ray on a thread: it takes milliseconds."""

_OF_THIS_JOB = RayTaskError, ObjectStoreFullError, OutOfDiskError
"""Errors that do not mean that the worker is lost."""

_END_SECONDS = 6.0  # more than the agent takes to end its process

log = logging.getLogger(__name__)


class Files:
    """Brings model files to nodes: each to each node once, however many workers want it at a time."""

    def __init__(self, find_model: Callable[[str], RunnableModel]) -> None:
        """Makes one.

        Args:
            find_model: Gives the model with a digest.
        """
        self._find_model = find_model
        self._locks: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()

    async def bring(self, digest: str, agent: Any, node: str) -> None:  # a handle of Ray's
        """Sees to it that a node has a model's file, and the agent knows it.

        Raises:
            OffloadError: The file has been changed since it was opened, or the node cannot keep it.
        """
        found = self._find_model(digest)
        stored, setup, manifest = found.stored, found.setup, found.stored.manifest
        computing = setup.engine.name, setup.precision, setup.provider
        model = ModelFile(digest, manifest.format, manifest.file_bytes, *computing)
        async with self._locks.setdefault((node, digest), asyncio.Lock()):
            if await agent.has.remote(model):
                return
            log.info("model %s goes to node %s: %.1f MB", manifest.name, node, manifest.file_bytes / 1e6)
            with await asyncio.to_thread(open_regular, stored.path) as file:
                piece = b"-"
                while piece:
                    piece = await asyncio.to_thread(file.read, _PIECE_BYTES)
                    failed = await agent.receive.remote(model, piece)
                    if failed is not None:
                        raise failed.error
            if not await agent.has.remote(model):
                raise InternalError(f"model {manifest.name!r} has come to node {node}, but cannot be opened there")


class ClusterWorker:
    """An agent and the worker process behind it; see `workers.base.Worker`."""

    capacity = 1

    def __init__(
        self,
        agent: Any,  # a handle of Ray's
        seat: int,
        place: Place,
        files: Files,
        on_end: Callable[[ClusterWorker], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.leaving: asyncio.Future[None] = self._loop.create_future()
        self.host, self.label, self.place = place.address, str(seat), place
        self._agent = agent
        self._files = files
        self._there: set[str] = set()  # digests of the models that the agent knows
        self._on_end = on_end
        self._is_closing = False
        self._bringing: set[asyncio.Task[None]] = set()
        self._send(agent.lost.remote(), lambda _: self._lose())

    def run(self, job: Job, on_outcome: OnOutcome) -> None:
        """See `Worker.run`."""

        def call() -> Any:
            return self._agent.run.remote(pack(job))

        is_large = sum(len(tensor.data) for tensor in job.tensors) > _LARGE_BYTES
        self._ask(job.digest, call, on_outcome, is_large=is_large)

    def prepare(self, preparation: Preparation, on_prepared: OnPrepared) -> None:
        """See `Worker.prepare`."""
        self._ask(preparation.digest, lambda: self._agent.prepare.remote(preparation), on_prepared)

    def cancel(self, job: Job) -> None:  # noqa: ARG002  # it has one at a time
        """See `Worker.cancel`."""
        self._agent.cancel.remote()

    def starved_seconds(self) -> float:
        """See `Worker.starved_seconds`: the daemon does not see the node's cores."""
        return 0.0

    def kill(self) -> None:
        """See `Worker.kill`; a node that hangs need not answer."""
        self._lose()

    async def close(self) -> None:
        """Ends the process; whoever made the actor ends that."""
        self._is_closing = True
        for task in self._bringing:
            task.cancel()
        try:
            if not self.lost.done():
                with contextlib.suppress(TimeoutError, RayError):
                    async with asyncio.timeout(_END_SECONDS):
                        await self._agent.close.remote()
        finally:
            self._on_end(self)

    def _ask(
        self, digest: str, call: Callable[[], Any], on_answer: Callable[[Any], None], *, is_large: bool = False
    ) -> None:
        """Has the agent do something for a model, whose file goes ahead if it does not know it yet."""
        if digest in self._there and not is_large:
            self._send(call(), on_answer)
            return
        task = self._loop.create_task(self._bring_and_ask(digest, call, on_answer))
        self._bringing.add(task)
        task.add_done_callback(self._bringing.discard)

    async def _bring_and_ask(self, digest: str, call: Callable[[], Any], on_answer: Callable[[Any], None]) -> None:
        try:
            if digest not in self._there:
                await self._files.bring(digest, self._agent, self.place.node)
                self._there.add(digest)
            reference = await asyncio.to_thread(call)  # what is large waits for room in the object store
        except OffloadError as error:
            on_answer(error)
        except Exception as error:
            if isinstance(error, RayError) and not isinstance(error, _OF_THIS_JOB):
                self._lose()
                return
            log.exception("model or job do not come to node %s", self.place.node)
            on_answer(InternalError("model or job could not be brought to a node; the server's log has the details"))
        else:
            self._send(reference, on_answer)

    def _send(self, reference: Any, on_answer: Callable[[Any], None]) -> None:  # Ray's
        """Hands out what a call gives, or notes that the worker is lost."""

        def answered(future: concurrent.futures.Future[Any]) -> None:  # on a thread of Ray's
            with contextlib.suppress(RuntimeError):  # the daemon has ended
                self._loop.call_soon_threadsafe(self._answered, future, on_answer)

        reference.future().add_done_callback(answered)

    def _answered(self, future: concurrent.futures.Future[Any], on_answer: Callable[[Any], None]) -> None:
        if self.lost.done() or self._is_closing:
            return
        error = future.exception()
        if error is None:
            answer = future.result()
            if isinstance(answer, bytes):
                answer = pickle.loads(answer)  # of the agent's, which Ray would read the same way
            on_answer(answer.error if isinstance(answer, Failed) else answer)
        elif isinstance(error, _OF_THIS_JOB):
            log.error("worker %s on %s: a call failed", self.label, self.host, exc_info=error)
            on_answer(InternalError("the job failed inside the server; its log has the details"))
        else:  # its node, its actor, or what it gave, is gone
            self._lose()

    def _lose(self) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
