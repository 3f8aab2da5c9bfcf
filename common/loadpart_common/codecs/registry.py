"""The codecs by name. A new codec is a module beside this file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.codecs.raw import RawCodec
from loadpart_common.errors import InputError, SettingsError
from loadpart_common.plugins import Registry

if TYPE_CHECKING:
    from loadpart_common.codecs.base import Codec

CODECS: Registry[Codec] = Registry("codec")

CODECS.register(RawCodec.name, RawCodec)


def codec_named(name: str) -> Codec:
    """The codec that a message names.

    Raises:
        InputError: There is none of that name.
    """
    try:
        return CODECS[name]
    except SettingsError as error:
        raise InputError(f"unknown codec {name!r}: expected one of {', '.join(CODECS)}") from error
