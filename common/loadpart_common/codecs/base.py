"""What a codec is to the rest of the project."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    from loadpart_common.tensors import Array

Buffer: TypeAlias = bytes | bytearray | memoryview


class Codec(ABC):
    """A way to write the elements of an array as bytes.

    Attributes:
        name: What plan keys and the protocol call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def encode(self, array: Array) -> Buffer:
        """The elements of an array; possibly its own memory."""

    @abstractmethod
    def decode(self, data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """The array again; possibly over `data`.

        Raises:
            InputError: The bytes are not those of such an array.
        """

    @abstractmethod
    def check(self, nbytes: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Refuses what cannot be the bytes of an array, by their number alone, before anything is decoded.

        Raises:
            InputError: So many bytes are no such array.
        """
