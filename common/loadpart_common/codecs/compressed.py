"""What codecs have in common that make an array smaller."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from loadpart_common.codecs.base import Buffer, Codec
from loadpart_common.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from loadpart_common.tensors import Array, TensorSpec


class CompressedCodec(Codec):
    """A codec of arrays of some kinds, which writes fewer bytes than there are elements' bytes, or none.

    Attributes:
        dtypes: Names of the element types that it takes.
    """

    dtypes: ClassVar[frozenset[str]]

    @abstractmethod
    def takes_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether it takes arrays of a shape."""

    @abstractmethod
    def compress(self, array: Array) -> Buffer | None:
        """The elements of an array that it takes; None where it cannot keep its word."""

    @abstractmethod
    def expand(self, data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """The array again.

        Raises:
            InputError: The bytes are not those of such an array.
        """

    def takes(self, spec: TensorSpec) -> bool:
        """See `Codec.takes`."""
        return spec.dtype in self.dtypes and self.takes_shape(spec.concrete(1))

    def encode(self, array: Array) -> Buffer | None:
        """See `Codec.encode`."""
        if array.dtype.name not in self.dtypes or not self.takes_shape(array.shape):
            return None
        data = self.compress(array)
        return data if data is not None and len(data) < array.nbytes else None

    def decode(self, data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """See `Codec.decode`."""
        self.check(len(data), dtype, shape)
        return self.expand(data, dtype, shape)

    def check(self, nbytes: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """See `Codec.check`."""
        if dtype.name not in self.dtypes or not self.takes_shape(shape):
            raise InputError(f"codec {self.name!r} does not write {dtype.name}{list(shape)}")
        raw = math.prod(shape) * dtype.itemsize
        if not 0 < nbytes < raw:
            raise InputError(f"expected fewer than {raw} bytes for {dtype.name}{list(shape)}, got {nbytes}")
