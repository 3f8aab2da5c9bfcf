"""What the daemon and its worker processes say to each other, over a socket that keeps messages apart.

The socket is of the kind `SOCK_SEQPACKET`. Messages are small; tensors lie in a `Slot`. They are JSON, since the daemon
believes nothing of a worker, which runs what came from strangers: other formats, such as pickles, could run code.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from loadpart_common.errors import error_named

if TYPE_CHECKING:
    from loadpart_common.errors import OffloadError
    from loadpart_edge.workers.base import Dropped
    from loadpart_edge.workers.local.slot import Placed

LARGEST_BYTES = 128 << 10
"""Of a message; the kernel's buffers hold more."""


class RunTail(NamedTuple):
    """Run a tail on tensors that are in the slot; leave the outputs there, written with the same codec."""

    path: str
    format: str
    digest: str
    cut: int
    codec: str
    batch: int
    tensors: tuple[Placed, ...]


class PrepareTail(NamedTuple):
    """Build a tail for a batch size, unless it is built, and time some runs of it for the smallest batch."""

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


_MOST = 1e15  # of any figure

_KINDS: tuple[Any, ...] = (RunTail, PrepareTail, TailRan, TailPrepared, Failed)


def encode(message: tuple[Any, ...]) -> bytes:
    """A message as it goes over the socket: its kind, and itself."""
    return json.dumps((_KINDS.index(type(message)), *message)).encode()


def decode(data: bytes) -> Any:
    """The message that `encode` wrote; lists in it are tuples again.

    Raises:
        ValueError: It is none.
    """
    try:
        kind, *values = json.loads(data)
        message = _KINDS[kind](*map(_tuples, values))
    except (TypeError, IndexError, RecursionError) as error:
        raise ValueError(f"not a message: {data[:100]!r}") from error
    if isinstance(message, TailRan | TailPrepared) and not all(
        isinstance(value, int | float) and 0 <= value < _MOST for value in message[:-1]
    ):
        raise ValueError(f"not figures: {data[:100]!r}")
    return message


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
