"""Tensors on the wire, and the methods of the service.

A codec turns an array into bytes and back without loss; `raw` is the bytes themselves.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message

from loadpart.v1 import offload_pb2
from loadpart_common.errors import InputError
from loadpart_common.tensors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from loadpart_common.tensors import Array

SERVICE = "loadpart.v1.Offload"

DEFAULT_MAX_MESSAGE_BYTES = 256 << 20
"""Largest message that either side takes; the largest tensor of the six networks at a cut has 13 MB."""

_MESSAGE_OVERHEAD_BYTES = 64 << 10

_NUMBER_BY_DTYPE = {name: offload_pb2.DataType.Value(f"DATA_TYPE_{name.upper()}") for name in DTYPES}
_DTYPE_BY_NUMBER = {number: np.dtype(name) for name, number in _NUMBER_BY_DTYPE.items()}


class Codec(ABC):
    """A lossless way to write the elements of an array as bytes."""

    name: ClassVar[str]

    @abstractmethod
    def encode(self, array: Array) -> bytes:
        """The elements of an array."""

    @abstractmethod
    def decode(self, data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """The array again.

        Raises:
            InputError: There are too few bytes, or too many.
        """


class RawCodec(Codec):
    """Little-endian, row-major, uncompressed."""

    name = "raw"

    def encode(self, array: Array) -> bytes:
        """See `Codec.encode`."""
        return np.ascontiguousarray(array).tobytes()

    def decode(self, data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """See `Codec.decode`."""
        expected = math.prod(shape) * dtype.itemsize
        if len(data) != expected:
            raise InputError(f"expected {expected} bytes for {dtype.name}{list(shape)}, got {len(data)}")
        return np.frombuffer(data, dtype).reshape(shape)


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


def tensors_to_wire(arrays: Iterable[Array], codec: Codec) -> list[offload_pb2.Tensor]:
    """Arrays as messages."""
    return [
        offload_pb2.Tensor(data_type=_NUMBER_BY_DTYPE[array.dtype.name], shape=array.shape, data=codec.encode(array))
        for array in arrays
    ]


def tensors_from_wire(tensors: Iterable[offload_pb2.Tensor], codec: Codec) -> list[Array]:
    """Messages as arrays; read-only.

    Raises:
        InputError: An element type is unknown, a size negative, or the bytes do not fit the shape.
    """
    arrays = []
    for position, tensor in enumerate(tensors):
        dtype = _DTYPE_BY_NUMBER.get(tensor.data_type)
        if dtype is None:
            raise InputError(f"tensor {position}: unknown data type {tensor.data_type}")
        if any(size < 0 for size in tensor.shape):
            raise InputError(f"tensor {position}: expected sizes of 0 or more, got shape {list(tensor.shape)}")
        try:
            arrays.append(codec.decode(tensor.data, dtype, tuple(tensor.shape)))
        except InputError as error:
            raise InputError(f"tensor {position}: {error}") from error
    return arrays


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


def serialise(message: Message) -> bytes:
    """A message as bytes."""
    return message.SerializeToString()


def lenient_parser(kind: type[Message]) -> Callable[[bytes], Message | None]:
    """A parser that gives None for bytes that are no such message, so that the service can answer with a clear error.

    gRPC itself would report a failure inside the server.
    """

    def parse(data: bytes) -> Message | None:
        try:
            return kind.FromString(data)
        except DecodeError:
            return None

    return parse


def channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """Settings of gRPC that both sides share."""
    limit = max_message_bytes + _MESSAGE_OVERHEAD_BYTES  # the bound is on tensors; names and shapes come on top
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        # Retries would buffer what is sent; a tensor is larger than the buffer, and the SDK has its own fall-back.
        ("grpc.enable_retries", 0),
    ]
