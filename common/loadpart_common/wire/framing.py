"""Messages with tensors, written and read with as few copies as possible.

The field `tensors` holds most of a message's bytes. Protobuf's own code would copy them twice in each direction, so
this module writes and parses the field itself.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import Message

from loadpart.v1 import offload_pb2
from loadpart_common import protobuf_fields
from loadpart_common.codecs.raw import RawCodec
from loadpart_common.errors import InputError, RequestError
from loadpart_common.protobuf_fields import WireError, field_prefix, fields
from loadpart_common.tensors import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadpart_common.codecs.base import Buffer, Codec
    from loadpart_common.tensors import Array

M = TypeVar("M", bound=Message)

_RAW = RawCodec()

_MAX_RANK = 32  # numpy's

_NUMBER_BY_DTYPE = {np.dtype(name): offload_pb2.DataType.Value(f"DATA_TYPE_{name.upper()}") for name in DTYPES}
_DTYPE_BY_NUMBER = {number: dtype for dtype, number in _NUMBER_BY_DTYPE.items()}

_PREFIXES = 1024  # cached ones: enough for all cuts and outputs in use
_LAYOUTS = 256
_LONGEST_PREFIX = 1024

# A message is parsed on the event loop of the daemon: what a parser would spend time or memory on is bounded before.
_MOST_TENSORS = 256
_MOST_OTHER_FIELDS = 64
_MOST_OTHER_BYTES = 16 << 10
_MOST_TENSOR_FIELDS = 2 * _MAX_RANK
_MOST_SHAPE_BYTES = 16 * _MAX_RANK


class EncodedTensor(NamedTuple):
    """A tensor of a received message, not decoded yet.

    Attributes:
        dtype: Type of its elements.
        shape: Its shape.
        data: Its elements as the codec wrote them; a view of the message.
        is_raw: Whether they are raw, because the message's codec does not take them.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data: memoryview
    is_raw: bool = False


def parse(kind: type[M], data: bytes) -> M:
    """A message without tensors.

    Raises:
        RequestError: The bytes are no such message.
    """
    try:
        return protobuf_fields.parse(kind, data)
    except WireError as error:
        raise RequestError(f"the bytes are not a message {kind.DESCRIPTOR.full_name}") from error


def with_tensors(message: Message, arrays: Iterable[Array], codec: Codec) -> bytes:
    """Serialises a message with arrays as its field `tensors`.

    The arrays' memory is copied once, into the result; building a protobuf message of them would copy it twice more.
    """
    return b"".join([message.SerializeToString(), *tensor_pieces(type(message), arrays, codec)])


def tensor_pieces(kind: type[Message], arrays: Iterable[Array], codec: Codec) -> list[Buffer]:
    """The serialised field `tensors` of a kind of message, in pieces that may be the arrays' own memory.

    Arrays that the codec does not take are written raw.
    """
    pieces: list[Buffer] = []
    for array in arrays:
        data = codec.encode(array)
        is_raw = data is None
        if data is None:
            data = _RAW.encode(array)
        pieces += (_tensor_prefix(kind, array.dtype, array.shape, len(data), is_raw), data)  # type: ignore[arg-type]
    return pieces


@functools.lru_cache(_PREFIXES)
def _tensor_prefix(
    kind: type[Message], dtype: np.dtype[Any], shape: tuple[int, ...], nbytes: int, is_raw: bool
) -> bytes:
    """The serialised bytes before a tensor's elements, which take `nbytes`."""
    head = offload_pb2.Tensor(data_type=_NUMBER_BY_DTYPE[dtype], shape=shape, raw=is_raw).SerializeToString()
    head += field_prefix(offload_pb2.Tensor.DATA_FIELD_NUMBER, nbytes)
    return field_prefix(kind.DESCRIPTOR.fields_by_name["tensors"].number, len(head) + nbytes) + head


def read_message(kind: type[M], data: bytes | bytearray) -> tuple[M, list[EncodedTensor]]:
    """Reads what `with_tensors` wrote: the message without its tensors, and the tensors, not decoded yet.

    Args:
        kind: Type of the message.
        data: The bytes.

    Raises:
        RequestError: The bytes are not such a message, or one with too many tensors or fields.
        InputError: An element type is unknown, or a shape none.
    """
    layout = _layouts.get((kind, len(data)))
    message = layout.message(kind, data) if layout is not None else None
    if layout is None or message is None:
        message, layout = _read_layout(kind, data)
    view = memoryview(data)
    return message, [
        EncodedTensor(dtype, shape, view[start:end], is_raw) for _, start, end, dtype, shape, is_raw in layout.tensors
    ]


def decode(tensors: Sequence[EncodedTensor], codec: Codec, *, copy: bool = False) -> list[Array]:
    """Tensors as arrays.

    Args:
        tensors: The tensors of a received message.
        codec: The codec that wrote them.
        copy: Whether the arrays get writable memory of their own; if not, they may be views of the message.

    Raises:
        InputError: The bytes of a tensor do not fit its type and shape.
    """
    arrays = []
    for index, (dtype, shape, data, is_raw) in enumerate(tensors):
        try:
            arrays.append((_RAW if is_raw else codec).decode(bytearray(data) if copy else data, dtype, shape))
        except InputError as error:
            raise InputError(f"tensor {index}: {error}") from error
    return arrays


def check(tensors: Sequence[EncodedTensor], codec: Codec) -> None:
    """Refuses tensors whose bytes do not fit their types and shapes, without decoding them.

    Raises:
        InputError: The bytes of a tensor do not fit its type and shape.
    """
    for index, (dtype, shape, data, is_raw) in enumerate(tensors):
        try:
            (_RAW if is_raw else codec).check(len(data), dtype, shape)
        except InputError as error:
            raise InputError(f"tensor {index}: {error}") from error


class _Layout(NamedTuple):
    """The places of a message's tensors, which come after all its other fields.

    Messages of the same length mostly have the same layout, so the last one of that length is tried before the fields
    of a message are parsed one by one.

    Attributes:
        head_bytes: Bytes of the other fields.
        tensors: For each tensor: the bytes before its elements, start and end of these, element type, shape, and
            whether it is raw.
    """

    head_bytes: int
    tensors: list[tuple[bytes, int, int, np.dtype[Any], tuple[int, ...], bool]]

    def message(self, kind: type[M], data: bytes | bytearray) -> M | None:
        """The other fields of a message of the same length; None if its layout differs."""
        position = self.head_bytes
        for prefix, start, end, *_ in self.tensors:
            if data[position:start] != prefix:
                return None
            position = end
        try:
            message = protobuf_fields.parse(kind, bytes(data[: self.head_bytes]))
        except WireError:
            return None
        return None if message.tensors else message  # type: ignore[attr-defined]


_layouts: dict[tuple[type[Message], int], _Layout] = {}


def _read_layout(kind: type[M], data: bytes | bytearray) -> tuple[M, _Layout]:
    """Parses a message; returns it without its tensors, and its layout, which is kept for messages of this length.

    Raises:
        RequestError: The bytes are not such a message.
        InputError: An element type is unknown, or a shape none.
    """
    number = kind.DESCRIPTOR.fields_by_name["tensors"].number
    view = memoryview(data)
    rest, tensors, first_tensor = [], [], len(data)
    try:
        for field, start, value, end in fields(view, 0, len(view), _MOST_TENSORS + _MOST_OTHER_FIELDS):
            if field == number:
                first_tensor = min(first_tensor, start)
                tensors.append(_read_tensor(view, value, end))
            else:
                rest.append(view[start:end])
        _check_at_most("tensors", len(tensors), _MOST_TENSORS)
        _check_at_most("bytes besides tensors", sum(map(len, rest)), _MOST_OTHER_BYTES)
        message = protobuf_fields.parse(kind, b"".join(rest))
    except WireError as error:
        raise RequestError(f"the bytes are not a message {kind.DESCRIPTOR.full_name}: {error}") from error
    layout = _Layout(first_tensor, [])
    position = first_tensor
    for index, (tensor, start, end) in enumerate(tensors):
        prefix = bytes(data[position:start])
        layout.tensors.append((prefix, start, end, *_element_type_and_shape(index, tensor), tensor.raw))
        position = end
    are_last = sum(map(len, rest)) == first_tensor and position == len(data)
    if are_last and all(len(prefix) <= _LONGEST_PREFIX for prefix, *_ in layout.tensors):
        if len(_layouts) >= _LAYOUTS:
            _layouts.clear()
        _layouts[kind, len(data)] = layout
    return message, layout


def _check_at_most(what: str, number: int, most: int) -> None:
    if number > most:
        raise WireError(f"expected at most {most} {what}, got {number}")


def _read_tensor(view: memoryview, start: int, end: int) -> tuple[offload_pb2.Tensor, int, int]:
    """A tensor's type and shape, and start and end of its elements."""
    rest, data_start, data_end = [], end, end
    for field, field_start, value, field_end in fields(view, start, end, _MOST_TENSOR_FIELDS):
        if field == offload_pb2.Tensor.DATA_FIELD_NUMBER:
            data_start, data_end = value, field_end
        else:
            rest.append(view[field_start:field_end])
    _check_at_most("bytes of a shape", sum(map(len, rest)), _MOST_SHAPE_BYTES)
    return protobuf_fields.parse(offload_pb2.Tensor, b"".join(rest)), data_start, data_end


def _element_type_and_shape(index: int, tensor: offload_pb2.Tensor) -> tuple[np.dtype[Any], tuple[int, ...]]:
    dtype, shape = _DTYPE_BY_NUMBER.get(tensor.data_type), tuple(tensor.shape)
    if dtype is None:
        raise InputError(f"tensor {index}: unknown data type {tensor.data_type}")
    if len(shape) > _MAX_RANK:
        raise InputError(f"tensor {index}: expected at most {_MAX_RANK} dimensions, got {len(shape)}")
    if any(size < 0 for size in shape):
        raise InputError(f"tensor {index}: expected sizes of 0 or more, got shape {list(shape)}")
    return dtype, shape
