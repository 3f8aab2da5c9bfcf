"""8-bit values, compressed by Zstandard."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from loadpart_common.codecs.base import Buffer, Rates
from loadpart_common.codecs.q8 import Q8Codec
from loadpart_common.errors import InputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    import numpy as np

    from loadpart_common.tensors import Array

_LEVEL = 1
_LARGEST_WINDOW_LOG = 22
"""4 MiB, which every encoder at this level stays within."""


class Q8zCodec(Q8Codec):
    """As `q8`, and then compressed without loss: most activations are 0 or near it."""

    name = "q8z"
    rates = Rates(share=0.15, encode_seconds=2e-9, decode_seconds=1.2e-9, error=0.005)

    def compress(self, array: Array) -> bytes | None:
        """See `CompressedCodec.compress`."""
        data = super().compress(array)
        return None if data is None else zstd.compress(data, _LEVEL)

    def expand(self, data: Buffer, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
        """See `CompressedCodec.expand`."""
        expected = self.quantised_bytes(shape)
        try:
            size = zstd.get_frame_info(data).decompressed_size
            if size != expected:
                raise InputError(f"expected a frame of {expected} bytes for {dtype.name}{list(shape)}, got {size}")
            decompressor = zstd.ZstdDecompressor(
                options={zstd.DecompressionParameter.window_log_max: _LARGEST_WINDOW_LOG}
            )
            levels = decompressor.decompress(data, expected)
        except zstd.ZstdError as error:
            raise InputError(f"expected a Zstandard frame: {error}") from error
        if not decompressor.eof or decompressor.unused_data:
            raise InputError("expected one whole Zstandard frame, and nothing after it")
        return super().expand(levels, dtype, shape)
