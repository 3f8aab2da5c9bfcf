"""Floating-point numbers in 8 bits: an offset and a step for each item of the batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart_common.codecs.base import Buffer, Rates
from loadpart_common.codecs.compressed import CompressedCodec
from loadpart_common.errors import InputError

if TYPE_CHECKING:
    from loadpart_common.tensors import Array

_LEVELS = 255
_LEAST_ROW = 64
"""Elements of an item: with fewer, offset and step would take much of what 8 bits save."""

_LARGEST_RANGE, _SMALLEST_RANGE = 1e38, 1e-30
"""Of an item's values, so that no step overflows or vanishes in single precision."""

_FEWEST_STEPS = 2.0
"""Between an item's values and their mean, on average: with an outlier most of them would fall into one step."""

_HEADER = np.dtype("<f8")


class Q8Codec(CompressedCodec):
    """Each value becomes the nearest of 256 that lie evenly between the least and the largest of its item.

    The error of a value x is at most step / 2 + e * max |x|, where the step is the item's range / 255, and e is 2^-21
    in single precision and 2^-10 in half precision, to which the value is rounded again. An array with a NaN, an
    infinity or an outlier is refused.

    First come offset and step of each item as float64, then the 8-bit values.
    """

    name = "q8"
    is_lossless = False
    dtypes = frozenset({"float32", "float16"})
    rates = Rates(share=0.25, encode_seconds=1.5e-9, decode_seconds=0.6e-9, error=0.005)

    def takes_shape(self, shape: tuple[int, ...]) -> bool:
        """See `CompressedCodec.takes_shape`."""
        rows, length = _rows(shape)
        return rows > 0 and length >= _LEAST_ROW

    def sample(self) -> Array:
        """See `Codec.sample`: activations after a rectifier, half of them 0."""
        values = np.random.default_rng(0).standard_normal((1, 1 << 16), np.float32)
        return np.maximum(values, 0, out=values)

    def compress(self, array: Array) -> bytes | None:
        """See `CompressedCodec.compress`."""
        rows, length = _rows(array.shape)
        values = np.ascontiguousarray(array).reshape(rows, length).astype(np.float32, copy=False)
        header = np.empty((rows, 2), _HEADER)
        levels = np.empty((rows, length), np.uint8)
        for row in range(rows):
            affine = _affine(values[row])
            if affine is None:
                return None
            header[row] = low, step = affine
            if step == 0:
                levels[row] = 0
                continue
            scaled = values[row] - np.float32(low)
            scaled *= np.float32(1 / step)
            np.rint(scaled, out=scaled)
            levels[row] = scaled
        return header.tobytes() + levels.tobytes()

    def expand(self, data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """See `CompressedCodec.expand`."""
        rows, length = _rows(shape)
        expected = self.quantised_bytes(shape)
        if len(data) != expected:
            raise InputError(f"expected {expected} bytes for {dtype.name}{list(shape)}, got {len(data)}")
        header = np.frombuffer(data, _HEADER, 2 * rows).reshape(rows, 2)
        low, step = header[:, :1], header[:, 1:]
        ends = np.concatenate([low, low + _LEVELS * step])
        if not (np.isfinite(header).all() and (step >= 0).all() and (np.abs(ends) <= np.finfo(dtype).max).all()):
            raise InputError("expected finite numbers as offset and step of each item")
        levels = np.frombuffer(data, np.uint8, rows * length, header.nbytes).reshape(rows, length)
        values = np.multiply(levels, step.astype(np.float32), dtype=np.float32)
        values += low.astype(np.float32)
        return values.astype(dtype, copy=False).reshape(shape)

    @staticmethod
    def quantised_bytes(shape: tuple[int, ...]) -> int:
        """Bytes of an array in 8 bits, offsets and steps included."""
        return 2 * _HEADER.itemsize * _rows(shape)[0] + math.prod(shape)


def _rows(shape: tuple[int, ...]) -> tuple[int, int]:
    """Items of an array, and elements of each: a vector is one item."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape[-1:] if len(shape) == 1 else shape[1:]) if shape else 1


def _affine(values: Array) -> tuple[float, float] | None:
    """Offset and step of an item's values; None when 8 bits are too few for them."""
    low, high = float(values.min()), float(values.max())
    spread = high - low
    if spread == 0:
        return low, 0.0
    if not _SMALLEST_RANGE < spread < _LARGEST_RANGE:  # nor is it NaN
        return None
    step = spread / _LEVELS
    # In units of the range, in which nothing overflows.
    unit = (values - np.float32(low)) * np.float32(1 / spread)
    unit -= unit.mean(dtype=np.float64)
    if float(np.abs(unit, out=unit).mean(dtype=np.float64)) < _FEWEST_STEPS / _LEVELS:
        return None
    return low, step
