"""Element types, tensor specifications, and the check of an array against one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from loadpart_common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

Array: TypeAlias = npt.NDArray[Any]

BATCH = -1
"""Stands for the batch size in a shape."""

DTYPES = (
    "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "bool", "float16", "float64", "uint32", "uint64",
)  # fmt: skip
"""Names of the element types that can cross a cut, as numpy calls them."""

_NUMPY_DTYPES = {name: np.dtype(name) for name in DTYPES}  # in the machine's byte order, in which they are sent


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, element type and shape of a tensor; a leading `BATCH` in the shape stands for any batch size."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        sizes = ", ".join("N" if size == BATCH else str(size) for size in self.shape)
        return f"{self.dtype}[{sizes}]"

    def nbytes(self, batch: int) -> int:
        """Bytes of the tensor for `batch` items."""
        return math.prod(self.concrete(batch)) * _NUMPY_DTYPES[self.dtype].itemsize

    def concrete(self, batch: int) -> tuple[int, ...]:
        """The shape with the batch size put in."""
        return tuple(batch if size == BATCH else size for size in self.shape)


class Shaped(Protocol):
    """An array, or a tensor that is not decoded yet."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""


def check_arrays(arrays: Sequence[Shaped], specs: tuple[TensorSpec, ...], batch: int | None = None) -> int:
    """Checks arrays against specifications and returns the batch size that they share.

    Args:
        arrays: The arrays to check.
        specs: The expected specifications, in the same order.
        batch: The expected batch size; None allows any of one or more.

    Raises:
        InputError: The number of arrays, an element type, a rank, a size or the batch size is wrong.
    """
    if len(arrays) != len(specs):
        expected = ", ".join(f"{spec.name}: {spec}" for spec in specs)
        raise InputError(f"expected {len(specs)} tensor(s) ({expected}), got {len(arrays)}")
    for array, spec in zip(arrays, specs, strict=True):
        if array.dtype != _NUMPY_DTYPES[spec.dtype]:
            raise InputError(f"tensor {spec.name!r}: expected dtype {spec.dtype}, got {array.dtype}")
        shape = array.shape
        if spec.shape[:1] != (BATCH,):
            fits = shape == spec.shape
        elif fits := len(shape) > 0 and shape[1:] == spec.shape[1:]:
            batch = shape[0] if batch is None else batch
            if shape[0] != batch or batch < 1:
                raise InputError(f"tensor {spec.name!r}: expected a batch of {max(batch, 1)}, got shape {list(shape)}")
        if not fits:
            raise InputError(f"tensor {spec.name!r}: expected {spec}, got shape {list(shape)}")
    return 1 if batch is None else batch
