"""Tensors on the wire, and the methods of the service.

A codec turns an array into bytes and back without loss; `raw` is the bytes themselves.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import numpy as np
from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message

from loadpart.v1 import offload_pb2
from loadpart_common.errors import InputError, RequestError
from loadpart_common.protobuf_fields import WireError, field_prefix, fields
from loadpart_common.tensors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from loadpart_common.tensors import Array

M = TypeVar("M", bound=Message)
Buffer: TypeAlias = bytes | bytearray | memoryview

SERVICE = "loadpart.v1.Offload"

DEFAULT_MAX_MESSAGE_BYTES = 256 << 20
"""Largest message that either side takes; the largest tensor of the six networks at a cut has 13 MB."""

BACKLOG_WINDOW_SECONDS = 0.3
"""Window of the mean backlog in a status: some jobs long, and soon over when a load ends."""

_MESSAGE_OVERHEAD_BYTES = 64 << 10
_MAX_RANK = 32  # numpy's

_NUMBER_BY_DTYPE = {np.dtype(name): offload_pb2.DataType.Value(f"DATA_TYPE_{name.upper()}") for name in DTYPES}
_DTYPE_BY_NUMBER = {number: dtype for dtype, number in _NUMBER_BY_DTYPE.items()}

_PREFIXES = 1024  # of tensors, kept: as many as there are cuts and outputs in use
_LAYOUTS = 256
_LONGEST_PREFIX = 1024


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
    pieces: list[Buffer] = []
    for array in arrays:
        data = codec.encode(array)
        pieces += (_tensor_prefix(kind, array.dtype, array.shape, len(data)), data)  # type: ignore[arg-type]
    return pieces


@functools.lru_cache(_PREFIXES)
def _tensor_prefix(kind: type[Message], dtype: np.dtype[Any], shape: tuple[int, ...], nbytes: int) -> bytes:
    """What stands before a tensor's elements, which take so many bytes."""
    head = offload_pb2.Tensor(data_type=_NUMBER_BY_DTYPE[dtype], shape=shape).SerializeToString()
    head += field_prefix(offload_pb2.Tensor.DATA_FIELD_NUMBER, nbytes)
    return field_prefix(kind.DESCRIPTOR.fields_by_name["tensors"].number, len(head) + nbytes) + head


def without_tensors(
    kind: type[M], data: bytes, *, codec: Codec | None = None, copy: bool = False
) -> tuple[M, list[Array]]:
    """Reads what `with_tensors` wrote: the message without its tensors, and these as arrays.

    Args:
        kind: Type of the message.
        data: The bytes.
        codec: Codec of the tensors; the one that the message names when None.
        copy: Whether the arrays have memory of their own, to write into; if not, they are over the bytes.

    Raises:
        RequestError: The bytes are not such a message.
        InputError: The codec or an element type is unknown, a size negative, or the bytes do not fit the shape.
    """
    known = _layouts.get((kind, len(data)))
    message = known.message(kind, data) if known is not None else None
    if known is None or message is None:
        message, known = _read_layout(kind, data)
    codec = codec or codec_named(message.codec)  # type: ignore[attr-defined]
    view, arrays = memoryview(data), []
    for _, start, end, dtype, shape in known.tensors:
        elements = bytearray(view[start:end]) if copy else view[start:end]
        try:
            arrays.append(codec.decode(elements, dtype, shape))
        except InputError as error:
            raise InputError(f"tensor {len(arrays)}: {error}") from error
    return message, arrays


class _Layout(NamedTuple):
    """Where the tensors of a message are, which come after all its other fields.

    Messages of one length mostly have the same, so it is looked for there before a message is walked over.

    Attributes:
        head_bytes: Bytes of the other fields.
        tensors: For each tensor what stands before its elements, where these start and end, their type, the shape.
    """

    head_bytes: int
    tensors: list[tuple[bytes, int, int, np.dtype[Any], tuple[int, ...]]]

    def message(self, kind: type[M], data: bytes) -> M | None:
        """The other fields of a message of the same length; None if its layout is another one."""
        position = self.head_bytes
        for prefix, start, end, _, _ in self.tensors:
            if data[position:start] != prefix:
                return None
            position = end
        try:
            message = kind.FromString(data[: self.head_bytes])
        except DecodeError:
            return None
        return None if message.tensors else message  # type: ignore[attr-defined]


_layouts: dict[tuple[type[Message], int], _Layout] = {}


def _read_layout(kind: type[M], data: bytes) -> tuple[M, _Layout]:
    """A message without its tensors, and where these are; kept for others like it.

    Raises:
        RequestError: The bytes are not such a message.
        InputError: An element type is unknown, or a shape none.
    """
    number = kind.DESCRIPTOR.fields_by_name["tensors"].number
    view = memoryview(data)
    rest, tensors, first_tensor = [], [], len(data)
    try:
        for field, start, value, end in fields(view, 0, len(view)):
            if field == number:
                first_tensor = min(first_tensor, start)
                tensors.append(_read_tensor(view, value, end))
            else:
                rest.append(view[start:end])
        message = kind.FromString(b"".join(rest))
    except (WireError, DecodeError) as error:
        raise RequestError(f"the bytes are not a message {kind.DESCRIPTOR.full_name}: {error}") from error
    layout = _Layout(first_tensor, [])
    position = first_tensor
    for index, (tensor, start, end) in enumerate(tensors):
        layout.tensors.append((data[position:start], start, end, *_element_type_and_shape(index, tensor)))
        position = end
    are_last = sum(map(len, rest)) == first_tensor and position == len(data)
    if are_last and all(len(prefix) <= _LONGEST_PREFIX for prefix, *_ in layout.tensors):
        if len(_layouts) >= _LAYOUTS:
            _layouts.clear()
        _layouts[kind, len(data)] = layout
    return message, layout


def _read_tensor(view: memoryview, start: int, end: int) -> tuple[offload_pb2.Tensor, int, int]:
    """A tensor's type and shape, and where its elements are."""
    rest, data_start, data_end = [], end, end
    for field, field_start, value, field_end in fields(view, start, end):
        if field == offload_pb2.Tensor.DATA_FIELD_NUMBER:
            data_start, data_end = value, field_end
        else:
            rest.append(view[field_start:field_end])
    return offload_pb2.Tensor.FromString(b"".join(rest)), data_start, data_end


def _element_type_and_shape(index: int, tensor: offload_pb2.Tensor) -> tuple[np.dtype[Any], tuple[int, ...]]:
    dtype, shape = _DTYPE_BY_NUMBER.get(tensor.data_type), tuple(tensor.shape)
    if dtype is None:
        raise InputError(f"tensor {index}: unknown data type {tensor.data_type}")
    if len(shape) > _MAX_RANK:
        raise InputError(f"tensor {index}: expected at most {_MAX_RANK} dimensions, got {len(shape)}")
    if any(size < 0 for size in shape):
        raise InputError(f"tensor {index}: expected sizes of 0 or more, got shape {list(shape)}")
    return dtype, shape


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
