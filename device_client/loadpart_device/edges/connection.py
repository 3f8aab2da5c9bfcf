"""A connection to an edge server: one channel, one method for each call, domain errors instead of gRPC's."""

from __future__ import annotations

import functools
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import grpc

from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS
from loadpart_common.errors import DeadlineError, MessageTooLargeError, ModelNotFoundError, UnavailableError
from loadpart_common.wire.error_codes import error_of
from loadpart_common.wire.framing import decode, read_message, with_tensors
from loadpart_common.wire.methods import METHODS, serialise

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from google.protobuf.message import Message

    from loadpart_common.planning.plan import PlanKey
    from loadpart_common.tensors import Array
    from loadpart_common.wire.endpoint import Endpoint

DEVICE = uuid.uuid4().hex
"""What this process calls itself to servers, so that they can tell devices apart behind one address."""

_KEEPALIVE_MILLISECONDS = 20_000
_RECONNECT_MILLISECONDS = 2_000
_REQUESTS = 256  # kept without their tensors, one for each plan in use


class TailReply(NamedTuple):
    """What came of a tail that the server ran.

    Attributes:
        outputs: The outputs that the tail gives.
        encode_seconds: Writing the request.
        network_seconds: On the way, both ways, decoding included.
        queue_seconds: In the server before the tail ran.
        tail_seconds: Running the tail.
        status: The server's load afterwards.
        sent_bytes: Of the request.
        received_bytes: Of the response.
    """

    outputs: list[Array]
    encode_seconds: float
    network_seconds: float
    queue_seconds: float
    tail_seconds: float
    status: offload_pb2.ServerStatus
    sent_bytes: int
    received_bytes: int


class StatusStream(Protocol):
    """A stream of statuses that another thread may cancel."""

    def __iter__(self) -> Iterator[offload_pb2.WatchStatusResponse]: ...

    def cancel(self) -> object:
        """Ends the stream."""


class Connection:
    """A connection to an edge server; made at once, connected when first used. Thread-safe.

    Attributes:
        endpoint: Where the server is.
        max_message_bytes: Largest message that may be sent; the server's own bound, once it is known.
    """

    def __init__(self, endpoint: Endpoint, max_message_bytes: int) -> None:
        self.endpoint = endpoint
        self.max_message_bytes = max_message_bytes
        self._channel = endpoint.connect(
            max_message_bytes,
            [
                # Keep-alive pings find out within half a minute that a silent link is dead.
                ("grpc.keepalive_time_ms", _KEEPALIVE_MILLISECONDS),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_MILLISECONDS // 2),
                # Reconnect soon after a server is back; the default waits up to two minutes.
                ("grpc.max_reconnect_backoff_ms", _RECONNECT_MILLISECONDS),
            ],
        )
        self._infer: Any = self._channel.unary_unary(METHODS["Infer"].path)  # bytes both ways: see `with_tensors`
        self._probe = self._stub("Probe")
        self._list_models = self._stub("ListModels")
        self._get_model = self._stub("GetModel")
        self._watch_status = self._stub("WatchStatus")

    def infer(
        self, model: str, digest: str, plan: PlanKey, arrays: Sequence[Array], timeout_seconds: float | None
    ) -> TailReply:
        """Has the server run a tail.

        Raises:
            MessageTooLargeError: The tensors are more than the server takes; nothing is sent.
            OffloadError: The server refused or failed, or could not be reached.
        """
        started = time.perf_counter()
        codec = CODECS[plan.codec]
        request = with_tensors(_request(model, digest, plan), arrays, codec)
        if len(request) > self.max_message_bytes:
            limit = self.max_message_bytes
            raise MessageTooLargeError(f"expected a message of at most {limit} bytes, got {len(request)}")
        encoded = time.perf_counter()
        data = _call(self._infer, request, timeout_seconds)
        response, tensors = read_message(offload_pb2.InferResponse, data)
        outputs = decode(tensors, codec, copy=True)
        server_seconds, tail_seconds = response.server_seconds, response.tail_seconds
        return TailReply(
            outputs,
            encode_seconds=encoded - started,
            network_seconds=max(0.0, time.perf_counter() - encoded - server_seconds),
            queue_seconds=server_seconds - tail_seconds,
            tail_seconds=tail_seconds,
            status=response.status,
            sent_bytes=len(request),
            received_bytes=len(data),
        )

    def probe(self, payload: bytes, timeout_seconds: float, *, response_bytes: int = 0) -> float:
        """Carries bytes to the server and so many back; gives the seconds on the way.

        Raises:
            OffloadError: The server could not be reached.
        """
        request = offload_pb2.ProbeRequest(payload=payload, response_bytes=response_bytes)
        started = time.perf_counter()
        response = _call(self._probe, request, timeout_seconds)
        return max(0.0, time.perf_counter() - started - float(response.server_seconds))

    def list_models(self, timeout_seconds: float) -> dict[str, offload_pb2.ModelInfo]:
        """The models that the server serves, by name; also learns how large a message it takes.

        Raises:
            OffloadError: The server could not be reached.
        """
        try:
            # An attempt that fails quickly is repeated within the time, since a server may be about to start.
            response = _call(self._list_models, offload_pb2.ListModelsRequest(), timeout_seconds, wait_for_ready=True)
        except DeadlineError as error:
            raise UnavailableError(f"no answer from {self.endpoint} within {timeout_seconds:g} s") from error
        self.max_message_bytes = min(self.max_message_bytes, response.max_message_bytes)
        return {model.name: model for model in response.models}

    def get_model(self, name: str) -> Iterator[offload_pb2.GetModelResponse]:
        """The pieces of a model: its manifest, then its file.

        Raises:
            ModelNotFoundError: The server has none of that name.
            OffloadError: The server could not be reached.
        """
        try:
            yield from self._get_model(offload_pb2.GetModelRequest(model=name))
        except grpc.RpcError as error:
            raise error_of(error) from None

    def watch_status(self) -> StatusStream:
        """The status stream; iterating raises `grpc.RpcError`."""
        stream: StatusStream = self._watch_status(offload_pb2.WatchStatusRequest())
        return stream

    def close(self) -> None:
        """Ends the connection and what is under way on it."""
        self._channel.close()

    def _stub(self, name: str) -> Any:
        method = METHODS[name]
        kind = self._channel.unary_stream if method.streams else self._channel.unary_unary
        return kind(method.path, request_serializer=serialise, response_deserializer=method.response.FromString)


def model_info(models: dict[str, offload_pb2.ModelInfo], name: str, endpoint: Endpoint) -> offload_pb2.ModelInfo:
    """What the server says of a model.

    Raises:
        ModelNotFoundError: It does not serve it; the message lists what it serves.
    """
    if name not in models:
        raise ModelNotFoundError(f"{endpoint} serves no model {name!r}: expected one of {', '.join(models) or 'none'}")
    return models[name]


@functools.lru_cache(_REQUESTS)
def _request(model: str, digest: str, plan: PlanKey) -> offload_pb2.InferRequest:
    """A request that lacks its tensors."""
    return offload_pb2.InferRequest(model=model, digest=digest, cut=plan.cut, codec=plan.codec, device=DEVICE)


def _call(stub: Any, request: Message | bytes, timeout_seconds: float | None, *, wait_for_ready: bool = False) -> Any:
    """Calls a unary method and waits for the response.

    Raises:
        OffloadError: The server refused or failed, or could not be reached.
    """
    try:
        response = stub(request, timeout=timeout_seconds, wait_for_ready=wait_for_ready)
    except grpc.RpcError as error:
        raise error_of(error) from None
    if response is None:  # as gRPC answers when the channel is closed at that moment
        raise UnavailableError("the connection was closed")
    return response
