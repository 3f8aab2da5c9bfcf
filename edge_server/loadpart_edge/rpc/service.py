"""The gRPC service: it converts a request, calls, and converts the result back."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from loadpart.v1 import offload_pb2
from loadpart_common.errors import (
    InternalError,
    MessageTooLargeError,
    OffloadError,
    RequestError,
    UnavailableError,
)
from loadpart_common.planning.plan import PlanKey
from loadpart_common.wire.error_codes import metadata_of, status_of
from loadpart_common.wire.framing import M, read_message
from loadpart_common.wire.methods import METHODS, SERVICE, serialise
from loadpart_edge.workers.base import Job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message

    from loadpart_common.graph import Cut
    from loadpart_common.wire.methods import Method
    from loadpart_edge.metrics import Metrics
    from loadpart_edge.scheduling.queue import Served
    from loadpart_edge.scheduling.scheduler import Scheduler
    from loadpart_edge.scheduling.status import StatusBoard
    from loadpart_edge.served_model import ServedModel
    from loadpart_edge.served_models import ServedModels

    Context = grpc.aio.ServicerContext[Any, Any]

_CHUNK_BYTES = 1 << 20
_MAX_PROBE_RESPONSE_BYTES = 16 << 20
_LONGEST_DEVICE = 64

log = logging.getLogger(__name__)


class OffloadService:
    """Answers devices."""

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
        self._noise = os.urandom(_CHUNK_BYTES)
        self.ready = False

    def handler(self) -> grpc.GenericRpcHandler:
        """The handler to add to a server."""
        functions: dict[str, Callable[..., Any]] = {
            "Infer": self.infer,
            "WatchStatus": self.watch_status,
            "Probe": self.probe,
            "ListModels": self.list_models,
            "GetModel": self.get_model,
        }
        handlers: dict[str, Any] = {
            name: (
                grpc.unary_stream_rpc_method_handler(self._stream(method, functions[name]), None, serialise)
                if method.streams
                else grpc.unary_unary_rpc_method_handler(self._unary(method, functions[name]), None, serialise)
            )
            for name, method in METHODS.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def infer(self, data: bytes, peer: str) -> bytes:
        """Runs a tail for a peer."""
        received = time.perf_counter()
        if not self.ready or self._board.draining:
            raise UnavailableError("the server is shutting down" if self.ready else "the server is starting")
        request, tensors = read_message(offload_pb2.InferRequest, data)
        model = self._models.get(request.model)
        plan = PlanKey(request.cut, request.codec)
        cut, batch = model.check(request.digest, plan, tensors)
        job = Job(request.digest, plan, batch, tuple(tensors))
        served = await self._scheduler.run(job, partial(model.predict, plan, batch))
        response = offload_pb2.InferResponse(
            queue_seconds=served.queue_seconds + served.outcome.build_seconds,
            tail_seconds=served.outcome.tail_seconds,
            status=self._board.current(),
        )
        response.server_seconds = seconds = time.perf_counter() - received
        device = request.device[:_LONGEST_DEVICE] or peer
        self._scheduler.deferred(self._count_job, device, model, plan, cut, batch, served, seconds)
        return response.SerializeToString() + served.outcome.tensors

    def watch_status(self, _: bytes) -> AsyncIterator[bytes]:
        """Streams the load."""
        return self._board.watch()

    async def probe(self, data: bytes, _: str) -> offload_pb2.ProbeResponse:
        """Echoes at once."""
        received = time.perf_counter()
        size = _parse(offload_pb2.ProbeRequest, data).response_bytes
        if size > _MAX_PROBE_RESPONSE_BYTES:
            raise MessageTooLargeError(f"response_bytes: expected at most {_MAX_PROBE_RESPONSE_BYTES}, got {size}")
        payload = (self._noise * (size // _CHUNK_BYTES + 1))[:size]
        return offload_pb2.ProbeResponse(payload=payload, server_seconds=time.perf_counter() - received)

    async def list_models(self, _: bytes, __: str) -> offload_pb2.ListModelsResponse:
        """Lists the models and what their tails cost."""
        models = [
            offload_pb2.ModelInfo(
                name=model.name,
                digest=model.stored.manifest.digest,
                format=model.stored.manifest.format,
                engine=model.engine,
                tail_seconds=model.tail_seconds.tolist(),
                modelled_tail_seconds=model.modelled_tail_seconds.tolist(),
                ready_plans=[offload_pb2.Plan(cut=plan.cut, codec=plan.codec) for plan in sorted(model.ready_plans)],
            )
            for model in self._models
        ]
        return offload_pb2.ListModelsResponse(models=models, max_message_bytes=self._max_message_bytes)

    async def get_model(self, data: bytes) -> AsyncIterator[offload_pb2.GetModelResponse]:
        """Streams a model."""
        stored = self._models.get(_parse(offload_pb2.GetModelRequest, data).model).stored
        yield offload_pb2.GetModelResponse(manifest=stored.manifest.to_bytes())
        with stored.path.open("rb") as file:
            while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                yield offload_pb2.GetModelResponse(chunk=chunk)

    def _unary(
        self, method: Method, function: Callable[[bytes, str], Awaitable[Message | bytes]]
    ) -> Callable[[bytes, Context], Awaitable[Message | bytes]]:
        succeeded = self._metrics.requests.labels(method.name, grpc.StatusCode.OK.name)

        async def call(request: bytes, context: Context) -> Message | bytes:
            try:
                response = await function(request, context.peer())
            except Exception as error:
                await self._fail(method, error, context)
                raise  # not reached: failing raises
            self._scheduler.deferred(succeeded.inc)
            return response

        return call

    def _stream(
        self, method: Method, function: Callable[..., AsyncIterator[Message | bytes]]
    ) -> Callable[[bytes, Context], AsyncIterator[Message | bytes]]:
        async def call(request: bytes, context: Context) -> AsyncIterator[Message | bytes]:
            try:
                async for response in function(request):
                    yield response
            except Exception as error:
                await self._fail(method, error, context)
            self._count(method, grpc.StatusCode.OK)

        return call

    async def _fail(self, method: Method, error: Exception, context: Context) -> None:
        """Answers with an error: a domain error as it is, anything else without its details, which the log gets."""
        if not isinstance(error, OffloadError):
            log.error("%s failed", method.name, exc_info=error)
            error = InternalError("the request failed inside the server; its log has the details")
        status = status_of(error)
        self._count(method, status)
        await context.abort(status, str(error), metadata_of(error))

    def _count_job(
        self,
        device: str,
        model: ServedModel,
        plan: PlanKey,
        cut: Cut,
        batch: int,
        served: Served,
        total_seconds: float,
    ) -> None:
        self._board.devices.seen(device)
        model.observe(served.host, plan, served.outcome.tail_seconds / batch)
        self._metrics.inferred(model.name, plan, cut.nbytes(batch), served, total_seconds)

    def _count(self, method: Method, code: grpc.StatusCode) -> None:
        self._metrics.requests.labels(method.name, code.name).inc()


def _parse(kind: type[M], data: bytes) -> M:
    """A request. gRPC's own parsing would report bytes that are none as a failure inside the server."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RequestError(f"the bytes are not a message {kind.DESCRIPTOR.full_name}") from error
