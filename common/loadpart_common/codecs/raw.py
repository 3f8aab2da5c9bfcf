"""The bytes as they lie in memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart_common.codecs.base import Buffer, Codec
from loadpart_common.errors import InputError

if TYPE_CHECKING:
    from loadpart_common.tensors import Array, TensorSpec


class RawCodec(Codec):
    """Little-endian, row-major, uncompressed."""

    name = "raw"

    def takes(self, spec: TensorSpec) -> bool:  # noqa: ARG002
        """See `Codec.takes`."""
        return True

    def sample(self) -> Array:
        """See `Codec.sample`."""
        return np.zeros(1 << 16, np.uint8)

    def encode(self, array: Array) -> Buffer:
        """See `Codec.encode`."""
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data

    def decode(self, data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """See `Codec.decode`."""
        self.check(len(data), dtype, shape)
        try:
            return np.frombuffer(data, dtype).reshape(shape)
        except ValueError as error:  # no elements, and yet a size beyond what can be counted
            raise InputError(f"expected a shape that an array can have, got {list(shape)}") from error

    def check(self, nbytes: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """See `Codec.check`."""
        expected = math.prod(shape) * dtype.itemsize
        if nbytes != expected:
            raise InputError(f"expected {expected} bytes for {dtype.name}{list(shape)}, got {nbytes}")
