"""Memory that the daemon and one worker process share."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from loadpart_common.errors import MessageTooLargeError
from loadpart_common.wire.framing import EncodedTensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from loadpart_common.codecs.base import Buffer

_ALIGNMENT = 64  # of a cache line, which vector instructions like
_KEPT_BYTES = 16 << 20
"""Memory of a slot that stays with it between jobs; what a larger job took is given back after it."""

Placed: TypeAlias = tuple[str, tuple[int, ...], int, int, bool]
"""A tensor in a slot: element type, shape, where its bytes start, how many they are, and whether it is raw."""


class Slot:
    """A job's tensors on the way to a worker, and then its outputs on the way back.

    One job at a time uses it. Pages are taken when they are first written. Its last byte tells the worker that the job
    is not wanted any more.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, 0)
        self._view = memoryview(self._map)
        self._size = len(self._map) - 1
        self._used = 0

    @classmethod
    def create(cls, nbytes: int) -> Slot:
        """A new slot, whose descriptor a child process may inherit."""
        descriptor = os.memfd_create("loadpart-slot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, nbytes)
        # A worker that made it smaller would end the daemon, which reads it.
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return cls(descriptor)

    def put(self, tensors: Sequence[EncodedTensor]) -> tuple[Placed, ...]:
        """Copies tensors into the slot, over what was there.

        Raises:
            MessageTooLargeError: They do not fit.
        """
        placed = []
        start = 0
        self._map[self._size] = 0
        for dtype, shape, data, is_raw in tensors:
            nbytes = len(data)
            if start + nbytes > self._size:
                needed = sum(len(each.data) for each in tensors)
                raise MessageTooLargeError(f"expected tensors of at most {self._size} bytes in all, got {needed}")
            self._map[start : start + nbytes] = data
            placed.append((dtype.str, shape, start, nbytes, is_raw))
            start += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        self._used = start
        return tuple(placed)

    def cancel(self) -> None:
        """Tells the worker that the job in the slot is not wanted any more."""
        self._map[self._size] = 1

    @property
    def is_cancelled(self) -> bool:
        """Whether the job in the slot is not wanted any more."""
        return self._map[self._size] == 1

    def take(self, placed: Sequence[Placed]) -> list[EncodedTensor]:
        """The tensors in the slot, not copied: good until the slot is used again."""
        return [
            EncodedTensor(np.dtype(dtype), shape, self._view[start : start + nbytes], is_raw)
            for dtype, shape, start, nbytes, is_raw in placed
        ]

    def write(self, pieces: Iterable[Buffer]) -> int:
        """Copies bytes into the slot, over what was there, and gives their number.

        Raises:
            MessageTooLargeError: They do not fit.
        """
        start = 0
        for piece in pieces:
            end = start + len(piece)
            if end > self._size:
                raise MessageTooLargeError(f"expected outputs of at most {self._size} bytes in all, got more")
            self._map[start:end] = piece
            start = end
        return start

    def read(self, nbytes: int) -> bytes:
        """A copy of the first bytes of the slot, which is not needed after that."""
        data = self._map[:nbytes]
        used = max(self._used, nbytes)
        if used > _KEPT_BYTES:
            self._map.madvise(mmap.MADV_REMOVE, _KEPT_BYTES, -(-(used - _KEPT_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE)
        return data

    def close(self) -> None:
        """Gives the memory back."""
        self._view.release()
        self._map.close()
        os.close(self.descriptor)
