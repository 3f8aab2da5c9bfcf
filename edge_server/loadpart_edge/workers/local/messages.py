"""What the daemon and its worker processes say to each other, over a socket that keeps messages apart.

The socket is of the kind `SOCK_SEQPACKET`. Messages are small; tensors lie in a `Slot`. They are pickled as plain
tuples, because unpickling instances of classes takes twice as long.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from loadpart_common.errors import OffloadError
    from loadpart_edge.workers.local.slot import Placed

LARGEST_BYTES = 128 << 10
"""Of a message; the kernel's buffers hold more."""


class RunTail(NamedTuple):
    """Run a tail on tensors that are in the slot; leave the outputs there, written with the same codec."""

    path: str
    format: str
    cut: int
    codec: str
    batch: int
    tensors: tuple[Placed, ...]


class PrepareTail(NamedTuple):
    """Build a tail, unless it is built, and time some runs of it."""

    path: str
    format: str
    cut: int
    runs: int


class TailRan(NamedTuple):
    """A tail has run; so many bytes of outputs are in the slot."""

    nbytes: int
    tail_seconds: float
    build_seconds: float


class TailPrepared(NamedTuple):
    """A tail is built. `seconds` is the median of its runs for one item, `resident_bytes` the worker's memory."""

    seconds: float
    resident_bytes: int


class Failed(NamedTuple):
    """What a worker could not do. `error` is one of `loadpart_common.errors`."""

    error: OffloadError


_KINDS: tuple[Any, ...] = (RunTail, PrepareTail, TailRan, TailPrepared, Failed)


def encode(message: tuple[Any, ...]) -> bytes:
    """A message as it goes over the socket: its kind, and itself."""
    return pickle.dumps((_KINDS.index(type(message)), *message), protocol=5)


def decode(data: bytes) -> Any:
    """The message that `encode` wrote."""
    kind, *values = pickle.loads(data)
    return _KINDS[kind](*values)
