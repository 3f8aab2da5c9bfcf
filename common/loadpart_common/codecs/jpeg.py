"""Pictures in JPEG."""

from __future__ import annotations

from typing import Any

from loadpart_common.codecs.base import Buffer, Rates
from loadpart_common.codecs.pictures import PictureCodec
from loadpart_common.errors import InputError

_SHARES = {75: 0.06, 85: 0.08, 90: 0.1, 95: 0.15}
"""Of a photograph's bytes, by quality."""

_START = b"\xff\xd8"
_MARKER = 0xFF
_OTHER_FRAMES = frozenset(range(0xC1, 0xD0)) - {0xC4, 0xC8, 0xCC}  # less those of tables and extensions
_FRAME, _SCAN = 0xC0, 0xDA


class JpegCodec(PictureCodec):
    """Photographs at a seventh of their size or less, with the errors of JPEG."""

    is_lossless = False
    format = "JPEG"
    largest_side = 65_500

    def __init__(self, quality: int) -> None:
        """Makes a codec of one of the qualities that have a name, as the Independent JPEG Group counts them."""
        self.name = f"jpeg-{quality}"
        self._quality = quality
        self.rates = Rates(share=_SHARES[quality], encode_seconds=2.5e-9, decode_seconds=2.5e-9, error=0.1)

    def options(self) -> dict[str, Any]:
        """See `PictureCodec.options`."""
        return {"quality": self._quality}

    def check_file(self, data: Buffer, height: int, width: int) -> None:
        """See `PictureCodec.check_file`.

        Only the simplest kind of file is taken, in which all of a picture is in one scan: thousands of scans, each over
        the whole picture, would fit into a small message.
        """
        view = memoryview(data)
        position, size = len(_START), None
        while position + 4 <= len(view) and view[position] == _MARKER:
            marker, length = view[position + 1], int.from_bytes(view[position + 2 : position + 4])
            if marker in _OTHER_FRAMES or (marker == _FRAME and size is not None):
                raise InputError("expected a baseline JPEG file")
            if marker == _FRAME:
                sides = view[position + 5 : position + 9]
                size = int.from_bytes(sides[2:]), int.from_bytes(sides[:2])
            if marker == _SCAN:
                break
            position += 2 + length
        if size != (width, height):
            got = "none" if size is None else f"{size[0]}x{size[1]}"
            raise InputError(f"expected a JPEG file of {width}x{height}, got {got}")
        if bytes(view[position + 2 :]).find(bytes((_MARKER, _SCAN))) >= 0:
            raise InputError("expected a JPEG file of one scan")
