"""What codecs of pictures have in common."""

from __future__ import annotations

import io
import struct
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from loadpart_common.codecs.compressed import CompressedCodec
from loadpart_common.errors import InputError

if TYPE_CHECKING:
    from loadpart_common.codecs.base import Buffer
    from loadpart_common.tensors import Array

_SAMPLE_SIDE = 224
_LENGTH = struct.Struct("<I")


class PictureCodec(CompressedCodec):
    """A codec of batches of pictures in red, green and blue, uint8 of shape (N, height, width, 3).

    Each picture is a file of its own, after its length as uint32.

    Attributes:
        format: What Pillow calls the format of the files.
        largest_side: Most pixels in a row or a column.
    """

    dtypes = frozenset({"uint8"})
    format: ClassVar[str]
    largest_side: ClassVar[int]

    def takes_shape(self, shape: tuple[int, ...]) -> bool:
        """See `CompressedCodec.takes_shape`."""
        if len(shape) != 4 or shape[0] == 0 or shape[3] != 3:
            return False
        return all(0 < side <= self.largest_side for side in shape[1:3])

    def sample(self) -> Array:
        """See `Codec.sample`: waves of several lengths, and a little noise."""
        rows, columns = np.mgrid[:_SAMPLE_SIDE, :_SAMPLE_SIDE]
        waves = np.stack([np.sin(rows / 7) + np.cos(columns / 5 * step) for step in (1, 2, 3)], axis=-1)
        noise = np.random.default_rng(0).normal(0, 2, waves.shape)
        pixels: Array = np.clip(waves * 60 + 128 + noise, 0, 255).astype(np.uint8)
        return pixels[None]

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """How Pillow is to save a picture."""

    @abstractmethod
    def check_file(self, data: Buffer, height: int, width: int) -> None:
        """Refuses what is not a file of a picture of this size, before Pillow takes memory for it.

        Raises:
            InputError: It is something else.
        """

    def compress(self, array: Array) -> bytes:
        """See `CompressedCodec.compress`."""
        pieces = []
        for picture in array:
            file = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(picture)).save(file, self.format, **self.options())
            pieces += [_LENGTH.pack(file.tell()), file.getvalue()]
        return b"".join(pieces)

    def expand(self, data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """See `CompressedCodec.expand`."""
        files = self._files(memoryview(data), shape[0])
        for file in files:
            self.check_file(file, *shape[1:3])
        pictures = np.empty(shape, dtype)
        for picture, file in zip(pictures, files, strict=True):
            picture[:] = self._open(file, *shape[1:3])
        return pictures

    @staticmethod
    def _files(data: memoryview, number: int) -> list[memoryview]:
        files, start = [], 0
        for _ in range(number):
            end = start + _LENGTH.size
            if end > len(data):
                break
            (length,) = _LENGTH.unpack(data[start:end])
            files.append(data[end : end + length])
            start = end + length
        if len(files) != number or start != len(data):
            raise InputError(f"expected {number} picture(s), each after its length, got {len(data)} other bytes")
        return files

    def _open(self, file: memoryview, height: int, width: int) -> Array:
        try:
            with Image.open(io.BytesIO(file), formats=[self.format]) as image:
                got = image.format, image.mode, image.size
                if got == (self.format, "RGB", (width, height)):
                    return np.asarray(image)
        except Exception as error:  # Pillow's parsers raise whatever their bytes lead them to
            raise InputError(f"expected a picture in {self.format}: {error}") from error
        raise InputError(f"expected a picture in {self.format}, RGB, of {width}x{height}, got {got}")
