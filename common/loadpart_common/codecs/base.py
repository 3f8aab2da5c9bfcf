"""What a codec is to the rest of the project."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    from loadpart_common.tensors import Array, TensorSpec

Buffer: TypeAlias = bytes | bytearray | memoryview


class Rates(NamedTuple):
    """What a codec costs and saves, for each byte of an array's elements, as measured once on one machine.

    They are where learning starts: see `latency.codec_costs`. They are a little better than the mean, since a codec
    that is expected to lose is never tried, and one that is tried is soon known.

    Attributes:
        share: Bytes that it writes.
        encode_seconds: Seconds to write them.
        decode_seconds: Seconds to read them.
        error: Largest difference that it makes to an output, as a share of the largest output.
    """

    share: float = 1.0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    error: float = 0.0


class Codec(ABC):
    """A way to write the elements of an array as bytes.

    Attributes:
        name: What plan keys and the protocol call it.
        is_lossless: Whether decoding gives the same bits again.
        rates: What it costs and saves, roughly.
    """

    name: str
    is_lossless: ClassVar[bool] = True
    rates: Rates = Rates()

    @abstractmethod
    def takes(self, spec: TensorSpec) -> bool:
        """Whether it is made for tensors like this; others are written raw."""

    @abstractmethod
    def sample(self) -> Array:
        """An array like those that it is made for, to time it on."""

    @abstractmethod
    def encode(self, array: Array) -> Buffer | None:
        """The elements of an array, possibly its own memory; None where it cannot keep its word or would save nothing.

        Such an array is written raw.
        """

    @abstractmethod
    def decode(self, data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """The array again, possibly over `data`. It takes no more memory than some times the array's own.

        Raises:
            InputError: The bytes are not those of such an array.
        """

    @abstractmethod
    def check(self, nbytes: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Refuses what cannot be the bytes of an array, by their number alone, before anything is decoded.

        Raises:
            InputError: So many bytes are no such array.
        """
