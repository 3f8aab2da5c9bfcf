"""The codecs by name. A new codec is a module beside this file and a line here."""

from __future__ import annotations

import importlib
from functools import partial
from typing import TYPE_CHECKING

from loadpart_common.codecs.raw import RawCodec
from loadpart_common.errors import InputError, SettingsError
from loadpart_common.plugins import Registry

if TYPE_CHECKING:
    from loadpart_common.codecs.base import Codec

CODECS: Registry[Codec] = Registry("codec")


def _made(module: str, kind: str, *arguments: int) -> Codec:
    """A codec whose module is imported only when it is used: some are heavy."""
    codec: Codec = getattr(importlib.import_module(f"loadpart_common.codecs.{module}"), kind)(*arguments)
    return codec


CODECS.register(RawCodec.name, RawCodec)
CODECS.register("webp-lossless", partial(_made, "webp_lossless", "WebpLosslessCodec"))
CODECS.register("q8", partial(_made, "q8", "Q8Codec"))
CODECS.register("q8z", partial(_made, "q8z", "Q8zCodec"))
for _quality in (75, 85, 90, 95):
    CODECS.register(f"jpeg-{_quality}", partial(_made, "jpeg", "JpegCodec", _quality))


def codec_named(name: str) -> Codec:
    """The codec that a message names.

    Raises:
        InputError: There is none of that name.
    """
    try:
        return CODECS[name]
    except SettingsError as error:
        raise InputError(f"unknown codec {name!r}: expected one of {', '.join(CODECS)}") from error
