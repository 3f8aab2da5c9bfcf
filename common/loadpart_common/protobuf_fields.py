"""Parses protobuf messages, and walks over their fields where parsing a whole message would copy its large fields.

A message is a sequence of fields, each a key (number and kind of value) and a value; see
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

if TYPE_CHECKING:
    from collections.abc import Iterator

M = TypeVar("M", bound=Message)

_LENGTH_DELIMITED = 2
_MOST_FIELDS = 1_000_000  # walking over so many takes about a second


class WireError(Exception):
    """The bytes are not a protobuf message."""


def parse(kind: type[M], data: bytes) -> M:
    """Parses a message.

    Raises:
        WireError: The bytes are no such message.
    """
    message = kind()
    merge(message, data)
    return message


def merge(message: Message, data: bytes) -> None:
    """Parses some fields of a message into it.

    Raises:
        WireError: The bytes are no such fields.
    """
    try:
        message.MergeFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:  # the latter by protobuf's runtime in Python, for text
        raise WireError(str(error)) from error


def fields(view: memoryview, position: int, end: int, most: int = _MOST_FIELDS) -> Iterator[tuple[int, int, int, int]]:
    """Walks over the fields of a message.

    Args:
        view: The bytes.
        position: Where the message starts.
        end: Where it ends.
        most: How many fields it may have: a field takes two bytes to send, and a microsecond to walk over.

    Yields:
        Number of the field, where it starts, where its value starts, where it ends.

    Raises:
        WireError: The bytes are not a message, or one of too many fields.
    """
    count = 0
    while position < end:
        start = position
        count += 1
        if count > most:
            raise WireError(f"expected at most {most} fields, got more at byte {start}")
        key, position = _varint(view, position, end)
        value = position
        match key & 7:
            case 0:  # a varint
                _, position = _varint(view, position, end)
            case 1:  # eight bytes
                position += 8
            case 2:  # a length, and that many bytes
                length, value = _varint(view, position, end)
                position = value + length
            case 5:  # four bytes
                position += 4
            case kind:
                raise WireError(f"wire type {kind} at byte {start}")
        if position > end:
            raise WireError(f"the field at byte {start} goes past the end, at {end}")
        yield key >> 3, start, value, position


def field_prefix(number: int, length: int) -> bytes:
    """Key and length of a field whose value has `length` bytes."""
    return encode_varint(number << 3 | _LENGTH_DELIMITED) + encode_varint(length)


def encode_varint(value: int) -> bytes:
    """Encodes a number of 0 or more with seven bits in each byte, the least significant first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 64, 7):
        if position >= end:
            raise WireError(f"it ends within a number, at byte {position}")
        byte = view[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise WireError(f"a number of more than ten bytes ends at byte {position}")
