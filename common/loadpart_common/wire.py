"""Tensors on the wire, and the methods of the service.

A codec turns an array into bytes and back without loss; `raw` is the bytes themselves.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, TypeVar

import numpy as np
from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message

from loadpart.v1 import offload_pb2
from loadpart_common.errors import InputError, RequestError
from loadpart_common.tensors import DTYPES
from loadpart_common.wireformat import WireError, field_prefix, fields

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadpart_common.tensors import Array

M = TypeVar("M", bound=Message)
Buffer: TypeAlias = bytes | memoryview

SERVICE = "loadpart.v1.Offload"

DEFAULT_MAX_MESSAGE_BYTES = 256 << 20
"""Largest message that either side takes; the largest tensor of the six networks at a cut has 13 MB."""

BACKLOG_WINDOW_SECONDS = 0.3
"""Window of the mean backlog in a status: some jobs long, and soon over when a load ends."""

_MESSAGE_OVERHEAD_BYTES = 64 << 10
_MAX_RANK = 32  # numpy's

_NUMBER_BY_DTYPE = {name: offload_pb2.DataType.Value(f"DATA_TYPE_{name.upper()}") for name in DTYPES}
_DTYPE_BY_NUMBER = {number: np.dtype(name) for name, number in _NUMBER_BY_DTYPE.items()}


class Codec(ABC):
    """A lossless way to write the elements of an array as bytes."""

    name: ClassVar[str]

    @abstractmethod
    def encode(self, array: Array) -> Buffer:
        """The elements of an array; possibly its own memory."""

    @abstractmethod
    def decode(self, data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """The array again.

        Raises:
            InputError: There are too few bytes, or too many.
        """


class RawCodec(Codec):
    """Little-endian, row-major, uncompressed."""

    name = "raw"

    def encode(self, array: Array) -> Buffer:
        """See `Codec.encode`."""
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data

    def decode(self, data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """See `Codec.decode`."""
        expected = math.prod(shape) * dtype.itemsize
        if len(data) != expected:
            raise InputError(f"expected {expected} bytes for {dtype.name}{list(shape)}, got {len(data)}")
        try:
            return np.frombuffer(data, dtype).reshape(shape)
        except ValueError as error:  # no elements, and yet a size beyond what can be counted
            raise InputError(f"expected a shape that an array can have, got {list(shape)}") from error


CODECS: dict[str, Codec] = {codec.name: codec for codec in (RawCodec(),)}
"""The codecs by name."""


def codec_named(name: str) -> Codec:
    """A codec.

    Raises:
        InputError: There is none of that name.
    """
    codec = CODECS.get(name)
    if codec is None:
        raise InputError(f"unknown codec {name!r}: expected one of {', '.join(CODECS)}")
    return codec


def with_tensors(message: Message, arrays: Iterable[Array], codec: Codec) -> bytes:
    """A message, written, with arrays as its field `tensors`.

    The arrays' memory is copied once, into the result; building a message of them first would copy it twice more.
    """
    return b"".join([message.SerializeToString(), *tensor_pieces(type(message), arrays, codec)])


def tensor_pieces(kind: type[Message], arrays: Iterable[Array], codec: Codec) -> list[Buffer]:
    """The field `tensors` of a kind of message, written, in pieces that may be the arrays' own memory."""
    number = kind.DESCRIPTOR.fields_by_name["tensors"].number
    pieces: list[Buffer] = []
    for array in arrays:
        head = offload_pb2.Tensor(data_type=_NUMBER_BY_DTYPE[array.dtype.name], shape=array.shape).SerializeToString()
        data = codec.encode(array)
        prefix = field_prefix(offload_pb2.Tensor.DATA_FIELD_NUMBER, len(data))
        pieces += [field_prefix(number, len(head) + len(prefix) + len(data)), head, prefix, data]
    return pieces


def without_tensors(kind: type[M], data: bytes, *, default_codec: str = "raw") -> tuple[M, list[Array]]:
    """Reads what `with_tensors` wrote: the message without its tensors, and these as arrays over the same bytes.

    Args:
        kind: Type of the message.
        data: The bytes.
        default_codec: Codec of the tensors when the message names none.

    Raises:
        RequestError: The bytes are not such a message.
        InputError: The codec or an element type is unknown, a size negative, or the bytes do not fit the shape.
    """
    number = kind.DESCRIPTOR.fields_by_name["tensors"].number
    view = memoryview(data)
    rest, tensors = [], []
    try:
        for field, start, value, end in fields(view, 0, len(view)):
            if field == number:
                tensors.append((value, end))
            else:
                rest.append(view[start:end])
        message = kind.FromString(b"".join(rest))
        parsed = [_parse_tensor(view, start, end) for start, end in tensors]
    except (WireError, DecodeError) as error:
        raise RequestError(f"the bytes are not a message {kind.DESCRIPTOR.full_name}: {error}") from error
    codec = codec_named(getattr(message, "codec", default_codec))
    return message, [_to_array(position, *tensor, codec) for position, tensor in enumerate(parsed)]


def _parse_tensor(view: memoryview, start: int, end: int) -> tuple[offload_pb2.Tensor, memoryview]:
    """A tensor's type and shape, and its bytes where they are."""
    rest, data = [], view[:0]
    for field, field_start, value, field_end in fields(view, start, end):
        if field == offload_pb2.Tensor.DATA_FIELD_NUMBER:
            data = view[value:field_end]
        else:
            rest.append(view[field_start:field_end])
    return offload_pb2.Tensor.FromString(b"".join(rest)), data


def _to_array(position: int, tensor: offload_pb2.Tensor, data: memoryview, codec: Codec) -> Array:
    dtype = _DTYPE_BY_NUMBER.get(tensor.data_type)
    if dtype is None:
        raise InputError(f"tensor {position}: unknown data type {tensor.data_type}")
    if len(tensor.shape) > _MAX_RANK:
        raise InputError(f"tensor {position}: expected at most {_MAX_RANK} dimensions, got {len(tensor.shape)}")
    shape = tuple(tensor.shape)
    if any(size < 0 for size in shape):
        raise InputError(f"tensor {position}: expected sizes of 0 or more, got shape {list(shape)}")
    try:
        return codec.decode(data, dtype, shape)
    except InputError as error:
        raise InputError(f"tensor {position}: {error}") from error


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the service, as the contract has it."""

    name: str
    request: type[Message]
    response: type[Message]
    streams: bool

    @property
    def path(self) -> str:
        """Its path in HTTP/2."""
        return f"/{SERVICE}/{self.name}"


METHODS = {
    method.name: Method(
        method.name,
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
        method.server_streaming,
    )
    for method in offload_pb2.DESCRIPTOR.services_by_name["Offload"].methods
}
"""The methods of the service by name."""


def serialise(message: Message | bytes) -> bytes:
    """A message as bytes; one that is written already stays as it is."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Settings of gRPC that both sides share."""
    limit = max_message_bytes + _MESSAGE_OVERHEAD_BYTES  # the bound is on tensors; names and shapes come on top
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        # Retries would buffer what is sent; a tensor is larger than the buffer, and the SDK has its own fall-back.
        ("grpc.enable_retries", 0),
    ]
