"""What the daemon and its workers say to each other, over a socket that keeps messages apart (`SOCK_SEQPACKET`).

Messages are small and pickled, as plain tuples: to find their classes again would take as long as all the rest. Tensors
lie in a `Slot` of memory that both map.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from loadpart_common.errors import MessageTooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadpart_common.tensors import Array
    from loadpart_common.wire.framing import Buffer

LARGEST_BYTES = 128 << 10
"""Of a message; the kernel's buffers hold more."""

_ALIGNMENT = 64  # of a cache line, which vector instructions like


Placed: TypeAlias = tuple[str, tuple[int, ...], int]
"""An array in a slot: its element type, its shape and where it starts."""


class Prepare(NamedTuple):
    """Build the tail of a cut, if it is not there yet, and time some runs of it."""

    model: str
    path: str
    cut: int
    runs: int = 5


class Prepared(NamedTuple):
    """A tail is built. `seconds` is the median of its runs for one item, `resident_bytes` the worker's memory."""

    seconds: float
    resident_bytes: int


class Run(NamedTuple):
    """Run the tail of a cut on tensors that are in the slot; write the outputs with a codec."""

    model: str
    path: str
    cut: int
    batch: int
    codec: str
    tensors: tuple[Placed, ...] = ()


class Done(NamedTuple):
    """A tail has run; its outputs are in the slot, written for the response. `seconds` leaves building it out."""

    nbytes: int
    seconds: float
    build_seconds: float


class Failed(NamedTuple):
    """What a worker could not do. `error` is one of `loadpart_common.errors` and is raised where the job waits."""

    error: Exception


_KINDS: tuple[Any, ...] = (Prepare, Prepared, Run, Done, Failed)


class Slot:
    """Memory that the daemon and one worker share: a job's tensors on the way there, its outputs on the way back.

    One job at a time uses it. Pages are taken when they are first written.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, 0)
        self._size = len(self._map)

    @classmethod
    def create(cls, nbytes: int) -> Slot:
        """A new slot, whose descriptor a child process may inherit."""
        descriptor = os.memfd_create("loadpart-slot")
        os.ftruncate(descriptor, nbytes)
        return cls(descriptor)

    def put(self, arrays: Sequence[Array]) -> tuple[Placed, ...]:
        """Copies arrays into the slot, over what was there.

        Raises:
            MessageTooLargeError: They do not fit.
        """
        placed = []
        offset = 0
        for array in arrays:
            if offset + array.nbytes > self._size:
                needed = sum(each.nbytes for each in arrays)
                raise MessageTooLargeError(f"expected tensors of at most {self._size} bytes in all, got {needed}")
            self._map[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            placed.append((array.dtype.str, array.shape, offset))
            offset += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        return tuple(placed)

    def write(self, pieces: Iterable[Buffer]) -> int:
        """Copies bytes into the slot, over what was there, and gives their number.

        Raises:
            MessageTooLargeError: They do not fit.
        """
        offset = 0
        for piece in pieces:
            end = offset + len(piece)
            if end > self._size:
                raise MessageTooLargeError(f"expected outputs of at most {self._size} bytes in all, got more")
            self._map[offset:end] = piece
            offset = end
        return offset

    def read(self, nbytes: int) -> bytes:
        """The first bytes of the slot."""
        return self._map[:nbytes]

    def views(self, placed: Sequence[Placed]) -> list[Array]:
        """The arrays in the slot, not copied: good until the slot is used again."""
        return [self._view(place) for place in placed]

    def close(self) -> None:
        """Gives the memory back."""
        self._map.close()
        os.close(self.descriptor)

    def _view(self, place: Placed) -> Array:
        dtype, shape, offset = place
        return np.frombuffer(self._map, dtype, math.prod(shape), offset).reshape(shape)


def encode(message: tuple[Any, ...]) -> bytes:
    """A message as it goes over the socket: its kind, and itself."""
    return pickle.dumps((_KINDS.index(type(message)), *message), protocol=5)


def decode(data: bytes) -> Any:
    """The message that `encode` wrote."""
    kind, *values = pickle.loads(data)
    return _KINDS[kind](*values)
