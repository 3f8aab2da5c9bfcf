"""What the daemon and its worker processes say to each other, over a socket that keeps messages apart.

The socket is of the kind `SOCK_SEQPACKET`. Messages are small; tensors lie in a `Slot`. The daemon sends pickles of
plain tuples, because unpickling instances of classes takes twice as long. It unpickles nothing itself, since it
believes nothing of a worker, which runs what came from strangers: an answer is a letter for its kind and numbers of
fixed size, and JSON where there is more to say, which is seldom.
"""

from __future__ import annotations

import json
import pickle
import struct
from typing import TYPE_CHECKING, NamedTuple

from loadpart_common.errors import error_named

if TYPE_CHECKING:
    from loadpart_common.errors import OffloadError
    from loadpart_edge.workers.base import Dropped
    from loadpart_edge.workers.local.slot import Placed

LARGEST_BYTES = 128 << 10
"""Of a message; the kernel's buffers hold more."""


class RunTail(NamedTuple):
    """Run a tail on tensors that are in the slot, written with `codec`; leave the outputs there with `reply_codec`."""

    engine: str
    precision: str
    provider: str
    path: str
    format: str
    digest: str
    cut: int
    codec: str
    reply_codec: str
    batch: int
    tensors: tuple[Placed, ...]


class PrepareTail(NamedTuple):
    """Build a tail for a batch size, unless it is built, and time some runs of it for the smallest batch."""

    engine: str
    precision: str
    provider: str
    path: str
    format: str
    digest: str
    cut: int
    batch: int
    runs: int


class TailRan(NamedTuple):
    """A tail has run; so many bytes of outputs are in the slot. `dropped` is as in `workers.base`."""

    nbytes: int
    tail_seconds: float
    build_seconds: float
    decode_seconds: float
    dropped: Dropped


class TailPrepared(NamedTuple):
    """A tail is built. `seconds` is the median of its runs for one item, `resident_bytes` the worker's memory."""

    seconds: float
    resident_bytes: int
    dropped: Dropped


class Failed(NamedTuple):
    """What a worker could not do: code and text of one of `loadpart_common.errors`."""

    code: str
    text: str

    @property
    def error(self) -> OffloadError:
        """The error again."""
        return error_named(self.code)(self.text)


_RAN, _PREPARED, _FAILED = b"R", b"P", b"F"
_RAN_FIGURES, _PREPARED_FIGURES = struct.Struct("<Qddd"), struct.Struct("<dQ")
_MOST_SECONDS = 1e6


def encode_order(order: RunTail | PrepareTail) -> bytes:
    """What the daemon sends."""
    return pickle.dumps((isinstance(order, RunTail), *order), protocol=5)


def decode_order(data: bytes) -> RunTail | PrepareTail:
    """What `encode_order` wrote."""
    runs, *values = pickle.loads(data)
    return RunTail(*values) if runs else PrepareTail(*values)


def encode_answer(answer: TailRan | TailPrepared | Failed) -> bytes:
    """What a worker sends."""
    if isinstance(answer, Failed):
        return _FAILED + json.dumps(answer).encode()
    dropped = json.dumps(answer.dropped).encode() if answer.dropped else b""
    if isinstance(answer, TailRan):
        return _RAN + _RAN_FIGURES.pack(*answer[:-1]) + dropped
    return _PREPARED + _PREPARED_FIGURES.pack(*answer[:-1]) + dropped


def decode_answer(data: bytes) -> TailRan | TailPrepared | Failed:
    """What `encode_answer` wrote.

    Raises:
        ValueError: It is something else.
    """
    try:
        if data[:1] == _RAN:
            nbytes, tail, build, decode = _RAN_FIGURES.unpack_from(data, 1)
            dropped = _dropped(data[1 + _RAN_FIGURES.size :])
            answer: TailRan | TailPrepared = TailRan(nbytes, tail, build, decode, dropped)
            _check_seconds(tail, build, decode)
        elif data[:1] == _PREPARED:
            median, resident = _PREPARED_FIGURES.unpack_from(data, 1)
            answer = TailPrepared(median, resident, _dropped(data[1 + _PREPARED_FIGURES.size :]))
            _check_seconds(median)
        else:
            code, text = json.loads(data.removeprefix(_FAILED))
            return Failed(str(code), str(text))
    except (struct.error, TypeError, RecursionError) as error:
        raise ValueError(f"not an answer: {data[:100]!r}") from error
    return answer


def _dropped(data: bytes) -> Dropped:
    if not data:
        return ()
    return tuple((str(digest), int(cut), int(batch)) for digest, cut, batch in json.loads(data))


def _check_seconds(*values: float) -> None:
    if not all(0 <= value < _MOST_SECONDS for value in values):
        raise ValueError(f"expected seconds, got {values}")
