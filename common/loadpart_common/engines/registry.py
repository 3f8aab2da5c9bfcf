"""The engines by name. A new engine is a folder beside this file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.errors import ModelError
from loadpart_common.plugins import Registry

if TYPE_CHECKING:
    from loadpart_common.engines.base import Engine

ENGINES: Registry[type[Engine]] = Registry("engine")

DEFAULT_ENGINE = "mindspore"


def _mindspore() -> type[Engine]:
    from loadpart_common.engines.mindspore.engine import MindSporeEngine

    return MindSporeEngine


ENGINES.register(DEFAULT_ENGINE, _mindspore)


def engine_for(format_name: str) -> type[Engine]:
    """The first engine that takes a format.

    Raises:
        ModelError: None does.
    """
    for name in ENGINES:
        if format_name in ENGINES[name].formats:
            return ENGINES[name]
    raise ModelError(f"no engine takes models of the format {format_name!r}: there are {', '.join(ENGINES)}")
