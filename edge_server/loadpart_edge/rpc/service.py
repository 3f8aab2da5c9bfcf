"""The gRPC service: converts, calls, converts back."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from loadpart.v1 import offload_pb2
from loadpart_common.errors import (
    ERROR_METADATA_KEY,
    InternalError,
    MessageTooLargeError,
    OffloadError,
    RequestError,
    UnavailableError,
)
from loadpart_common.wire.framing import (
    METHODS,
    SERVICE,
    M,
    serialise,
    without_tensors,
)
from loadpart_edge.workers.local.messages import Run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from google.protobuf.message import Message

    from loadpart_common.graph import Cut
    from loadpart_common.wire.framing import Method
    from loadpart_edge.metrics import Metrics
    from loadpart_edge.scheduling.scheduler import Outcome, Scheduler
    from loadpart_edge.scheduling.status import StatusBoard
    from loadpart_edge.served_models import ServedModel, ServedModels
    from loadpart_edge.settings import Settings

    Context = grpc.aio.ServicerContext[Any, Any]

_CHUNK_BYTES = 1 << 20
_MAX_PROBE_RESPONSE_BYTES = 16 << 20

log = logging.getLogger(__name__)


class OffloadService:
    """Answers devices."""

    def __init__(
        self, settings: Settings, models: ServedModels, scheduler: Scheduler, board: StatusBoard, metrics: Metrics
    ) -> None:
        self._settings = settings
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
        request, arrays = without_tensors(offload_pb2.InferRequest, data)
        model = self._models.get(request.model)
        cut, batch = model.check(request.digest, request.cut, arrays)
        job = Run(model.name, model.path, cut.index, batch, request.codec)
        outcome = await self._scheduler.run(job, arrays, float(model.tail_seconds[cut.index]) * batch)
        response = offload_pb2.InferResponse(
            queue_seconds=outcome.queue_seconds + outcome.build_seconds,
            tail_seconds=outcome.tail_seconds,
            status=self._board.current(),
        )
        response.server_seconds = time.perf_counter() - received
        self._scheduler.later(self._count_job, peer, model, cut, batch, outcome, response.server_seconds)
        return response.SerializeToString() + outcome.tensors

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
                file_bytes=model.stored.manifest.file_bytes,
                tail_seconds=model.tail_seconds.tolist(),
                ready_cuts=sorted(model.ready_cuts),
                regressed_tail_seconds=model.regressed_tail_seconds.tolist(),
            )
            for model in self._models
        ]
        return offload_pb2.ListModelsResponse(models=models, max_message_bytes=self._settings.max_message_bytes)

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
            self._scheduler.later(succeeded.inc)
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
        self._count(method, error.status)
        await context.abort(error.status, str(error), ((ERROR_METADATA_KEY, error.code),))

    def _count_job(self, peer: str, model: ServedModel, cut: Cut, batch: int, outcome: Outcome, seconds: float) -> None:
        self._board.devices.seen(peer)
        model.observe(cut.index, outcome.tail_seconds / batch)
        self._metrics.inferred(model.name, cut.index, cut.nbytes(batch), outcome, seconds)

    def _count(self, method: Method, code: grpc.StatusCode) -> None:
        self._metrics.requests.labels(method.name, code.name).inc()


def _parse(kind: type[M], data: bytes) -> M:
    """A request. gRPC's own parsing would report bytes that are none as a failure inside the server."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RequestError(f"the bytes are not a message {kind.DESCRIPTOR.full_name}") from error
