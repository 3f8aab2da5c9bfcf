"""The gRPC service: it converts a request, calls, and converts the result back."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from typing import TYPE_CHECKING

from loadpart.v1 import offload_pb2
from loadpart_common.errors import MessageTooLargeError, ModelError, UnavailableError
from loadpart_common.files import file_state, open_regular
from loadpart_common.planning.plan import DEFAULT_CODEC, PlanKey
from loadpart_common.wire.framing import parse, read_message
from loadpart_common.wire.limits import LARGEST_PROBE_BYTES
from loadpart_common.wire.methods import METHODS, SERVICE
from loadpart_edge.access.client import Right
from loadpart_edge.rpc.door import Entry
from loadpart_edge.rpc.quota import Quota
from loadpart_edge.workers.base import Job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import grpc

    from loadpart_edge.metrics import Metrics
    from loadpart_edge.rpc.call import Call
    from loadpart_edge.rpc.door import Door
    from loadpart_edge.scheduling.job import Owner, Served
    from loadpart_edge.scheduling.scheduler import Scheduler
    from loadpart_edge.scheduling.status import StatusBoard
    from loadpart_edge.served_model import ServedModel
    from loadpart_edge.served_models import ServedModels

_CHUNK_BYTES = 256 << 10  # gRPC buffers some of them for a device that reads slowly
_DRAIN_RETRY_SECONDS = 2.0

_STATUS_GAP_SECONDS = 1e-3
"""Between two statuses to a party, on average: writing one takes some 0.1 ms, which one party must not multiply."""

_LONGEST_STATUS_GAP_SECONDS = 4.0


class OffloadService:
    """Answers devices.

    Attributes:
        ready: Whether the workers have built their tails.
    """

    def __init__(
        self,
        models: ServedModels,
        scheduler: Scheduler,
        board: StatusBoard,
        metrics: Metrics,
        *,
        max_message_bytes: int,
    ) -> None:
        self._max_message_bytes = max_message_bytes
        self._models = models
        self._scheduler = scheduler
        self._board = board
        self._metrics = metrics
        self._noise = os.urandom(LARGEST_PROBE_BYTES)
        self._streams = Quota("status streams", in_all=8192, of_party=4096, of_device=4)
        self.ready = False

    def handler(self, door: Door) -> grpc.GenericRpcHandler:
        """The handler to add to a server, behind a door."""
        calls = Quota("calls", in_all=12288, of_party=8192, of_device=256)
        probes = Quota("probes", in_all=48, of_party=16, of_device=2)
        downloads = Quota("downloads", in_all=32, of_party=16, of_device=2)
        entries = {
            "Infer": Entry(self.infer, Right.INFER, calls),
            "WatchStatus": Entry(self.watch_status, Right.WATCH, self._streams),
            "Probe": Entry(self.probe, Right.INFER, probes),
            "ListModels": Entry(self.list_models, Right.WATCH, calls),
            "GetModel": Entry(self.get_model, Right.FETCH, downloads),
        }
        return door.handler(SERVICE, entries, frozenset(name for name, method in METHODS.items() if method.streams))

    async def infer(self, call: Call) -> bytes:
        """Runs a tail."""
        if not self.ready or self._board.draining:
            why = "the server is shutting down" if self.ready else "the server is starting"
            raise UnavailableError(why, _DRAIN_RETRY_SECONDS)
        self._scheduler.check_owner(call.owner, call.deadline)
        data = await call.read_whole(self._max_message_bytes, self._most_bytes)
        request, tensors = read_message(offload_pb2.InferRequest, data)
        model = self._models.get(request.model)
        plan = PlanKey(request.cut, request.codec)
        reply_codec = request.reply_codec or DEFAULT_CODEC
        batch = model.check(request.digest, plan, tensors, reply_codec)
        job = Job(request.digest, plan, batch, tuple(tensors), reply_codec)
        served = await self._scheduler.run(job, partial(model.predict, plan, batch), call.owner, call.deadline)
        response = offload_pb2.InferResponse(
            queue_seconds=served.queue_seconds + served.outcome.build_seconds,
            decode_seconds=served.outcome.decode_seconds,
            tail_seconds=served.outcome.tail_seconds,
            status=self._board.current(),
        )
        response.server_seconds = seconds = time.perf_counter() - call.received
        self._scheduler.deferred(self._count_job, call.owner, model, job, served, seconds)
        return response.SerializeToString() + served.outcome.tensors

    def _most_bytes(self, head: offload_pb2.InferRequest) -> int:
        """The most that the tensors of a request can take.

        Raises:
            RequestError: It cannot be served.
        """
        return self._models.get(head.model).most_bytes(head.digest, PlanKey(head.cut, head.codec))

    async def watch_status(self, call: Call) -> AsyncIterator[bytes]:
        """Streams the load: to a party with many streams, each of them gets fewer statuses."""
        await call.read()
        call.close()
        async for status in self._board.watch():
            yield status
            gap = self._streams.of_party(call.owner.party) * _STATUS_GAP_SECONDS
            await asyncio.sleep(min(gap, _LONGEST_STATUS_GAP_SECONDS))

    async def probe(self, call: Call) -> bytes:
        """Echoes at once."""
        size = parse(offload_pb2.ProbeRequest, await call.read()).response_bytes
        if size > LARGEST_PROBE_BYTES:
            raise MessageTooLargeError(f"response_bytes: expected at most {LARGEST_PROBE_BYTES}, got {size}")
        seconds = time.perf_counter() - call.received
        return offload_pb2.ProbeResponse(payload=self._noise[:size], server_seconds=seconds).SerializeToString()

    async def list_models(self, call: Call) -> bytes:
        """Lists the models and what their tails cost."""
        await call.read()
        models = [
            offload_pb2.ModelInfo(
                name=model.name,
                digest=model.stored.manifest.digest,
                format=model.stored.manifest.format,
                engine=str(model.setup),
                numerics=model.setup.numerics,
                tail_seconds=model.tail_seconds.tolist(),
                modelled_tail_seconds=model.modelled_tail_seconds.tolist(),
                ready_plans=[
                    offload_pb2.Plan(cut=plan.cut, codec=plan.codec, decode_seconds=seconds)
                    for plan, seconds in model.ready_plans.items()
                ],
                labels_digest=model.stored.manifest.labels_digest,
                max_batch=model.max_batch,
                codecs=model.codecs,
            )
            for model in self._models
        ]
        response = offload_pb2.ListModelsResponse(models=models, max_message_bytes=self._max_message_bytes)
        return response.SerializeToString()

    async def get_model(self, call: Call) -> AsyncIterator[bytes]:
        """Streams a model."""
        stored = self._models.get(parse(offload_pb2.GetModelRequest, await call.read()).model).stored
        call.close()
        yield offload_pb2.GetModelResponse(manifest=stored.manifest.to_bytes()).SerializeToString()
        try:
            with open_regular(stored.path) as file:
                if file_state(file) != stored.state:
                    raise ModelError("the model file has been changed since the server opened it")
                while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                    yield offload_pb2.GetModelResponse(chunk=chunk).SerializeToString()
        except OSError as error:
            raise ModelError("the model file cannot be read any more") from error

    def _count_job(self, owner: Owner, model: ServedModel, job: Job, served: Served, total_seconds: float) -> None:
        self._board.devices.seen(owner)
        model.observe(served.host, job.plan, served.outcome, job.batch)
        nbytes = sum(len(tensor.data) for tensor in job.tensors)
        self._metrics.inferred(model.name, job.plan, nbytes, served, total_seconds)
