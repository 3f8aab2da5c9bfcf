"""Memory that the daemon and one worker process share."""

from __future__ import annotations

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

Placed: TypeAlias = tuple[str, tuple[int, ...], int, int]
"""A tensor in a slot: its element type, its shape, where its bytes start and how many they are."""


class Slot:
    """A job's tensors on the way to a worker, and then its outputs on the way back.

    One job at a time uses it. Pages are taken when they are first written.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, 0)
        self._view = memoryview(self._map)
        self._size = len(self._map)

    @classmethod
    def create(cls, nbytes: int) -> Slot:
        """A new slot, whose descriptor a child process may inherit."""
        descriptor = os.memfd_create("loadpart-slot")
        os.ftruncate(descriptor, nbytes)
        return cls(descriptor)

    def put(self, tensors: Sequence[EncodedTensor]) -> tuple[Placed, ...]:
        """Copies tensors into the slot, over what was there.

        Raises:
            MessageTooLargeError: They do not fit.
        """
        placed = []
        start = 0
        for dtype, shape, data in tensors:
            nbytes = len(data)
            if start + nbytes > self._size:
                needed = sum(len(each.data) for each in tensors)
                raise MessageTooLargeError(f"expected tensors of at most {self._size} bytes in all, got {needed}")
            self._map[start : start + nbytes] = data
            placed.append((dtype.str, shape, start, nbytes))
            start += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        return tuple(placed)

    def take(self, placed: Sequence[Placed]) -> list[EncodedTensor]:
        """The tensors in the slot, not copied: good until the slot is used again."""
        return [
            EncodedTensor(np.dtype(dtype), shape, self._view[start : start + nbytes])
            for dtype, shape, start, nbytes in placed
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
        """A copy of the first bytes of the slot."""
        return self._map[:nbytes]

    def close(self) -> None:
        """Gives the memory back."""
        self._view.release()
        self._map.close()
        os.close(self.descriptor)
