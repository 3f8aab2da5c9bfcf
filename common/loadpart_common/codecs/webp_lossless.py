"""Pictures in WebP, without loss."""

from __future__ import annotations

import struct
from typing import Any

from loadpart_common.codecs.base import Buffer, Rates
from loadpart_common.codecs.pictures import PictureCodec
from loadpart_common.errors import InputError

_HEADER = struct.Struct("<4sI4s4sIBI")
"""Of a simple file: RIFF, bytes of the rest, WEBP, name and bytes of the chunk, signature, sizes."""

_SIGNATURE = 0x2F
_SIDE_BITS = 14


class WebpLosslessCodec(PictureCodec):
    """Photographs at about half their size, bit for bit (RFC 9649); at the least effort, which is 15 times quicker."""

    name = "webp-lossless"
    format = "WEBP"
    largest_side = (1 << _SIDE_BITS) - 1
    rates = Rates(share=0.45, encode_seconds=14e-9, decode_seconds=6e-9)

    def options(self) -> dict[str, Any]:
        """See `PictureCodec.options`."""
        return {"lossless": True, "method": 0}

    def check_file(self, data: Buffer, height: int, width: int) -> None:
        """See `PictureCodec.check_file`.

        A file with any other chunk may declare a canvas of another size, which Pillow takes memory for at once.
        """
        if len(data) < _HEADER.size:
            raise InputError(f"expected a WebP file, got {len(data)} bytes")
        riff, file_bytes, webp, chunk, chunk_bytes, signature, bits = _HEADER.unpack(data[: _HEADER.size])
        names = (riff, webp, chunk, signature) == (b"RIFF", b"WEBP", b"VP8L", _SIGNATURE)
        padded = chunk_bytes + chunk_bytes % 2
        if not names or file_bytes != len(data) - 8 or padded != len(data) - 20:
            raise InputError("expected a WebP file of one lossless picture and nothing else")
        mask = (1 << _SIDE_BITS) - 1
        got = 1 + (bits & mask), 1 + (bits >> _SIDE_BITS & mask)
        if got != (width, height):
            raise InputError(f"expected a picture of {width}x{height}, got {got[0]}x{got[1]}")
