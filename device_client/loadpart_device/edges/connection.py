"""A connection to an edge server: one channel, one method for each call, domain errors instead of gRPC's."""

from __future__ import annotations

import functools
import math
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import grpc

from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS
from loadpart_common.errors import (
    AuthenticationError,
    DeadlineError,
    InternalError,
    MessageTooLargeError,
    ModelNotFoundError,
    OffloadError,
    RequestError,
    UnavailableError,
)
from loadpart_common.planning.plan import DEFAULT_CODEC
from loadpart_common.protobuf_fields import field_prefix
from loadpart_common.tensors import check_arrays
from loadpart_common.wire.error_codes import error_of
from loadpart_common.wire.framing import decode, parse, read_message, tensor_pieces
from loadpart_common.wire.limits import DEVICE_KEY, PIECE_BYTES
from loadpart_common.wire.methods import METHODS
from loadpart_device.edges.plausible import Doubts, is_seconds, is_status

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from loadpart_common.graph import Graph
    from loadpart_common.planning.plan import PlanKey
    from loadpart_common.tensors import Array, TensorSpec
    from loadpart_common.wire.endpoint import Endpoint
    from loadpart_common.wire.error_codes import Metadata

DEVICE = uuid.uuid4().hex
"""What this process calls itself to servers, so that they can tell devices apart behind one address."""

_OPTIONS = [
    # A link that has died is noticed by data that is not acknowledged for so long, or by a ping when it is quiet.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    # Reconnect soon after a server is back; the defaults wait up to two minutes, and 20 s for one attempt.
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 1_000),
]
_REQUESTS = 256  # kept without their tensors, one for each plan in use
_LARGEST_LISTING_BYTES = 16 << 20
_OLD_CHANNEL_SECONDS = 60.0  # after which no call can be under way on a channel that was replaced
_LEAST_PROGRESS_BYTES = 16 << 10
_REASON_SECONDS = 0.25
_RENEWED_LATELY_SECONDS = 5.0  # after which no call that is refused began on the channel before
_LEAST_MESSAGE_BYTES = 4 << 10  # a server that claims to take less would take nothing


class TailReply(NamedTuple):
    """What came of a tail that the server ran.

    Attributes:
        outputs: The outputs that the tail gives.
        encode_seconds: Writing the request.
        network_seconds: On the way, both ways, decoding included.
        queue_seconds: In the server before the tail's turn.
        decode_seconds: Reading what crossed, in the server.
        tail_seconds: Running the tail.
        status: The server's load afterwards; None when it told none that can be true.
        encoded_bytes: Of the tensors that crossed.
        sent_bytes: Of the request.
        received_bytes: Of the response.
        is_timed: Whether the server's own times can be true, so that `network_seconds` is one.
    """

    outputs: list[Array]
    encode_seconds: float
    network_seconds: float
    queue_seconds: float
    decode_seconds: float
    tail_seconds: float
    status: offload_pb2.ServerStatus | None
    encoded_bytes: int
    sent_bytes: int
    received_bytes: int
    is_timed: bool = True


class Tail(NamedTuple):
    """A tail that a server is to run.

    Attributes:
        model: Name of the model.
        digest: SHA-256 of the device's file, in hexadecimal.
        plan: Where the network is cut, and how the tensors are encoded.
        outputs: Specifications of what it gives.
        batch: Items of the batch.
        reply_codec: How the outputs are to be encoded.
    """

    model: str
    digest: str
    plan: PlanKey
    outputs: tuple[TensorSpec, ...]
    batch: int
    reply_codec: str

    @classmethod
    def of(
        cls, graph: Graph, model: str, digest: str, plan: PlanKey, batch: int = 1, reply_codec: str = DEFAULT_CODEC
    ) -> Tail:
        """The tail of a network that a plan leaves to the server."""
        outputs = tuple([graph.spec(value) for value in graph.tail(plan.cut).outputs])
        return cls(model, digest, plan, outputs, batch, reply_codec)


class StatusStream(Protocol):
    """A stream of statuses that another thread may cancel."""

    def __iter__(self) -> Iterator[offload_pb2.WatchStatusResponse]: ...

    def cancel(self) -> object:
        """Ends the stream."""


class PendingReply:
    """A tail that the server has been asked to run."""

    def __init__(
        self,
        call: Any,
        tail: Tail,
        doubts: Doubts,
        *,
        started: float,
        encoded: float,
        encoded_bytes: int,
        sent_bytes: int,
    ) -> None:
        self._call = call
        self._tail = tail
        self._doubts = doubts
        self._started, self._encoded = started, encoded
        self._encoded_bytes, self._sent_bytes = encoded_bytes, sent_bytes

    @property
    def is_done(self) -> bool:
        """Whether the answer is there, or will not come."""
        return bool(self._call.done())

    def when_done(self, function: Callable[[], object]) -> None:
        """Has a function called, on another thread, once `is_done`."""
        self._call.add_done_callback(lambda _: function())

    def cancel(self) -> None:
        """Gives the answer up."""
        self._call.cancel()

    def result(self) -> TailReply:
        """Waits for the answer.

        Raises:
            OffloadError: The server refused or failed, could not be reached, or answered what cannot be an answer.
        """
        try:
            data = self._call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise error_of(error) if isinstance(error, grpc.RpcError) else UnavailableError("given up") from None
        if data is None:  # as gRPC answers when the channel is closed at that moment
            raise UnavailableError("the connection was closed")
        try:
            response, tensors = read_message(offload_pb2.InferResponse, data)
            outputs = decode(tensors, CODECS[self._tail.reply_codec], copy=True)
            check_arrays(outputs, self._tail.outputs, self._tail.batch)
        except RequestError as error:
            raise InternalError(f"the server's answer is not one: {error}") from error
        elapsed = time.perf_counter() - self._encoded
        server_seconds, tail_seconds = response.server_seconds, response.tail_seconds
        decode_seconds = response.decode_seconds
        is_timed = (
            is_seconds(server_seconds, elapsed)
            and is_seconds(decode_seconds, server_seconds)
            and is_seconds(tail_seconds, server_seconds - decode_seconds)
        )
        if not is_timed:
            self._doubts.add("time of its own")
            server_seconds = decode_seconds = tail_seconds = 0.0
        status = response.status if is_status(response.status) else None
        if status is None:
            self._doubts.add("status")
        return TailReply(
            outputs,
            encode_seconds=self._encoded - self._started,
            network_seconds=elapsed - server_seconds,
            queue_seconds=server_seconds - decode_seconds - tail_seconds,
            decode_seconds=decode_seconds,
            tail_seconds=tail_seconds,
            status=status,
            encoded_bytes=self._encoded_bytes,
            sent_bytes=self._sent_bytes,
            received_bytes=len(data),
            is_timed=is_timed,
        )


class _Stubs:
    """A channel, and the methods on it: bytes both ways, so that sizes can be looked at before anything is parsed."""

    def __init__(self, endpoint: Endpoint, max_message_bytes: int) -> None:
        self.state = endpoint.credentials.state()
        self.metadata: Metadata = ((DEVICE_KEY, DEVICE), *endpoint.credentials.metadata())
        self.channel = endpoint.connect(max_message_bytes, _OPTIONS)
        self.infer: Any = self.channel.unary_unary(METHODS["Infer"].path)
        self.infer_in_pieces: Any = self.channel.stream_unary(METHODS["Infer"].path)
        self.probe: Any = self.channel.unary_unary(METHODS["Probe"].path)
        self.list_models: Any = self.channel.unary_unary(METHODS["ListModels"].path)
        self.get_model: Any = self.channel.unary_stream(METHODS["GetModel"].path)
        self.watch_status: Any = self.channel.unary_stream(
            METHODS["WatchStatus"].path, response_deserializer=offload_pb2.WatchStatusResponse.FromString
        )


class Connection:
    """A connection to an edge server; made at once, connected when first used. Thread-safe.

    Attributes:
        endpoint: Where the server is.
        max_message_bytes: Largest message that may be sent; the server's own bound, once it is known.
        doubts: What was not believed of the server.
    """

    def __init__(self, endpoint: Endpoint, max_message_bytes: int) -> None:
        """Makes one.

        Args:
            endpoint: Where the server is, and how one gets in.
            max_message_bytes: Largest message that is sent or accepted.

        Raises:
            SettingsError: A file of the credentials cannot be read, or a token would cross a network in the clear.
        """
        self.endpoint = endpoint
        self.max_message_bytes = self._own_max_message_bytes = max_message_bytes
        self.doubts = Doubts(str(endpoint))
        self._renewing = threading.Lock()
        self._is_closed = False
        self._renewed_at = -math.inf
        self._stubs = _Stubs(endpoint, max_message_bytes)

    def start(self, tail: Tail, arrays: Sequence[Array], timeout_seconds: float) -> PendingReply:
        """Asks the server to run a tail; the answer is waited for with `PendingReply.result`.

        Args:
            tail: What to run.
            arrays: The tensors that are live at the cut, in the order of the graph.
            timeout_seconds: Until when the answer is of use, which the server is told.

        Raises:
            MessageTooLargeError: The tensors are more than the server takes; nothing is sent.
            UnavailableError: The connection is closed.
        """
        started = time.perf_counter()
        head = _request(tail.model, tail.digest, tail.plan, tail.reply_codec)
        pieces = tensor_pieces(offload_pb2.InferRequest, arrays, CODECS[tail.plan.codec])
        total = sum(map(len, pieces))
        nbytes = len(head) + total
        if nbytes > self.max_message_bytes:
            raise MessageTooLargeError(f"expected a message of at most {self.max_message_bytes} bytes, got {nbytes}")
        stubs = self._stubs
        options = {"timeout": timeout_seconds, "metadata": stubs.metadata}
        try:
            if nbytes <= PIECE_BYTES:
                request = b"".join([head, *pieces])
                encoded = time.perf_counter()
                call = stubs.infer.future(request, **options)
            else:
                encoded = time.perf_counter()
                call = stubs.infer_in_pieces.future(_in_pieces(head, b"".join(pieces)), **options)
        except ValueError as error:  # the channel is closed
            raise UnavailableError("the connection was closed") from error
        return PendingReply(
            call, tail, self.doubts, started=started, encoded=encoded, encoded_bytes=total, sent_bytes=nbytes
        )

    def infer(self, tail: Tail, arrays: Sequence[Array], timeout_seconds: float) -> TailReply:
        """Has the server run a tail, and waits for it.

        Raises:
            MessageTooLargeError: The tensors are more than the server takes; nothing is sent.
            OffloadError: The server refused or failed, could not be reached, or answered what cannot be an answer.
        """
        return self.start(tail, arrays, timeout_seconds).result()

    def probe(self, payload: bytes, timeout_seconds: float, *, response_bytes: int = 0) -> float:
        """Carries bytes to the server and so many back; gives the seconds on the way.

        Raises:
            OffloadError: The server could not be reached, or its answer is none.
        """
        request = offload_pb2.ProbeRequest(payload=payload, response_bytes=response_bytes).SerializeToString()
        started = time.perf_counter()
        response = self._parsed(offload_pb2.ProbeResponse, self._call("probe", request, timeout_seconds))
        elapsed = time.perf_counter() - started
        if not is_seconds(response.server_seconds, elapsed) or len(response.payload) != response_bytes:
            self.doubts.add("probe's answer")
            raise InternalError("the server's answer to a probe is not one")
        return elapsed - float(response.server_seconds)

    def list_models(self, timeout_seconds: float) -> dict[str, offload_pb2.ModelInfo]:
        """The models that the server serves, by name; also learns how large a message it takes.

        Raises:
            OffloadError: The server could not be reached, or its answer is none.
        """
        try:
            # An attempt that fails quickly is repeated within the time, since a server may be about to start.
            data = self._call("list_models", b"", timeout_seconds, wait_for_ready=True)
        except DeadlineError as error:
            why = self._why_not_connected()
            raise UnavailableError(f"no answer from {self.endpoint} within {timeout_seconds:g} s{why}") from error
        if len(data) > _LARGEST_LISTING_BYTES:
            raise InternalError(f"expected a list of models of at most {_LARGEST_LISTING_BYTES} bytes, got {len(data)}")
        response = self._parsed(offload_pb2.ListModelsResponse, data)
        if response.max_message_bytes >= _LEAST_MESSAGE_BYTES:
            self.max_message_bytes = min(self._own_max_message_bytes, response.max_message_bytes)
        else:
            self.doubts.add("largest message")
        return {model.name: model for model in response.models}

    def get_model(self, name: str) -> ModelStream:
        """The pieces of a model: its manifest, then its file."""
        stubs = self._stubs
        request = offload_pb2.GetModelRequest(model=name).SerializeToString()
        return ModelStream(stubs.get_model(request, metadata=stubs.metadata))

    def watch_status(self) -> StatusStream:
        """The status stream; iterating raises `grpc.RpcError`."""
        stubs = self._stubs
        stream: StatusStream = stubs.watch_status(b"", metadata=stubs.metadata)
        return stream

    def renew(self) -> bool:
        """Opens a new channel when files of the credentials have changed; gives whether a refused call may be repeated.

        So it may, too, when another thread has opened one lately. Calls that are under way on the old channel are not
        disturbed.
        """
        with self._renewing:
            old = self._stubs
            if self._is_closed:
                return False
            if self.endpoint.credentials.state() == old.state:
                return time.monotonic() - self._renewed_at < _RENEWED_LATELY_SECONDS
            try:
                self._stubs = _Stubs(self.endpoint, self._own_max_message_bytes)
            except OffloadError:  # half of the files is written, or one is gone
                return False
            self._renewed_at = time.monotonic()
            timer = threading.Timer(_OLD_CHANNEL_SECONDS, old.channel.close)
            timer.daemon = True
            timer.start()
            return True

    def close(self) -> None:
        """Ends the connection and what is under way on it."""
        with self._renewing:
            self._is_closed = True
            self._stubs.channel.close()

    def _call(self, name: str, request: bytes, timeout_seconds: float, *, wait_for_ready: bool = False) -> bytes:
        """Calls a unary method and waits for the response; once more when the server does not know an old credential.

        Raises:
            OffloadError: The server refused or failed, or could not be reached.
        """
        try:
            return self._call_once(name, request, timeout_seconds, wait_for_ready)
        except AuthenticationError:
            if not self.renew():
                raise
            return self._call_once(name, request, timeout_seconds, wait_for_ready)

    def _call_once(self, name: str, request: bytes, timeout_seconds: float, wait_for_ready: bool) -> bytes:
        stubs = self._stubs
        try:
            response: bytes | None = getattr(stubs, name)(
                request, timeout=timeout_seconds, wait_for_ready=wait_for_ready, metadata=stubs.metadata
            )
        except grpc.RpcError as error:
            raise error_of(error) from None
        except ValueError as error:  # the channel is closed
            raise UnavailableError("the connection was closed") from error
        if response is None:  # as gRPC answers when the channel is closed at that moment
            raise UnavailableError("the connection was closed")
        return response

    def _why_not_connected(self) -> str:
        """Why there is no connection, to be added to a message: waiting for one hides it."""
        try:
            self._call_once("list_models", b"", _REASON_SECONDS, wait_for_ready=False)
        except UnavailableError as error:
            return f": {explain(str(error), uses_tls=self.endpoint.credentials.uses_tls)}"
        except OffloadError:
            pass
        return ""

    @staticmethod
    def _parsed(kind: type[Any], data: bytes) -> Any:
        try:
            return parse(kind, data)
        except RequestError as error:
            raise InternalError(f"the server's answer is not one: {error}") from error


def explain(message: str, *, uses_tls: bool) -> str:
    """What gRPC says of a connection that did not come about, and what it means.

    Args:
        message: What gRPC says.
        uses_tls: Whether this side encrypts.
    """
    if any(word in message for word in ("andshake", "CERTIFICATE", "erification")):
        return f"the TLS handshake failed; is the server's certificate from 'ca', and for its name? ({message})"
    if "Socket closed" in message or "reset by peer" in message:
        ends = "the server ended the TLS handshake; does it expect another certificate of this device?"
        return f"{ends if uses_tls else 'the server closed the connection; does it expect TLS?'} ({message})"
    return message


class ModelStream:
    """The pieces of a model, for as long as they keep coming."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def pieces(self, patience_seconds: float) -> Generator[offload_pb2.GetModelResponse]:
        """The pieces, in order.

        Args:
            patience_seconds: How long to wait for 16 KiB: drops of a few bytes would take for ever.

        Raises:
            ModelNotFoundError: The server has no such model.
            UnavailableError: Less than that came in this time.
            OffloadError: The server could not be reached, or sends what is no piece.
        """
        stalled = threading.Event()

        def give_up() -> None:
            stalled.set()
            self._call.cancel()

        missing, left = _LEAST_PROGRESS_BYTES, patience_seconds
        try:
            while True:
                timer = threading.Timer(left, give_up)
                timer.daemon = True
                started = time.monotonic()
                timer.start()
                try:
                    data = next(self._call)
                finally:
                    timer.cancel()
                missing, left = missing - len(data), max(left - (time.monotonic() - started), 0.0)
                if missing <= 0:
                    missing, left = _LEAST_PROGRESS_BYTES, patience_seconds
                yield parse(offload_pb2.GetModelResponse, data)
        except StopIteration:
            return
        except RequestError as error:
            raise InternalError(f"the server sends what is no piece of a model: {error}") from error
        except grpc.RpcError as error:
            if stalled.is_set():
                raise UnavailableError(f"hardly anything of the model came for {patience_seconds:g} s") from None
            raise error_of(error) from None
        finally:
            self._call.cancel()


def model_info(models: dict[str, offload_pb2.ModelInfo], name: str, endpoint: Endpoint) -> offload_pb2.ModelInfo:
    """What the server says of a model.

    Raises:
        ModelNotFoundError: It does not serve it; the message lists what it serves.
    """
    if name not in models:
        raise ModelNotFoundError(f"{endpoint} serves no model {name!r}: expected one of {', '.join(models) or 'none'}")
    return models[name]


@functools.lru_cache(_REQUESTS)
def _request(model: str, digest: str, plan: PlanKey, reply_codec: str) -> bytes:
    """A request that lacks its tensors."""
    message = offload_pb2.InferRequest(model=model, digest=digest, cut=plan.cut, codec=plan.codec)
    if reply_codec != DEFAULT_CODEC:
        message.reply_codec = reply_codec
    return message.SerializeToString()


def _in_pieces(head: bytes, tensors: bytes) -> Iterator[bytes]:
    """The messages of a request that is too large for one."""
    yield head + offload_pb2.InferRequest(total_bytes=len(tensors)).SerializeToString()
    view = memoryview(tensors)
    for start in range(0, len(tensors), PIECE_BYTES):
        piece = view[start : start + PIECE_BYTES]
        yield b"".join([field_prefix(offload_pb2.InferRequest.PIECE_FIELD_NUMBER, len(piece)), piece])
