"""The engines by name. A new engine is a folder beside this file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.errors import ModelError, SettingsError
from loadpart_common.plugins import Registry

if TYPE_CHECKING:
    from loadpart_common.engines.base import Engine

ENGINES: Registry[type[Engine]] = Registry("engine")

DEFAULT_ENGINE = "mindspore"

AUTO = "auto"
"""Stands for the best engine that is installed."""


def _mindspore() -> type[Engine]:
    from loadpart_common.engines.mindspore.engine import MindSporeEngine

    return MindSporeEngine


ENGINES.register(DEFAULT_ENGINE, _mindspore)


def _onnxruntime() -> type[Engine]:
    from loadpart_common.engines.onnxruntime.engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine


ENGINES.register("onnxruntime", _onnxruntime)


def calibrated_engine(choice: str = AUTO) -> type[Engine]:
    """The engine that is calibrated: the chosen one, or the default one.

    Raises:
        SettingsError: The engine that was chosen does not exist.
    """
    return ENGINES[DEFAULT_ENGINE if choice == AUTO else choice]


def engine_for(format_name: str, choice: str = AUTO) -> type[Engine]:
    """The engine that runs models of a format.

    Args:
        format_name: Name of the format.
        choice: Name of the engine, or `AUTO` for the first one that is installed and takes the format.

    Raises:
        SettingsError: The engine that was chosen does not exist, or is not installed.
        ModelError: It does not take the format, or no engine does.
    """
    if choice != AUTO:
        engine = ENGINES[choice]
        if not engine.is_installed():
            raise SettingsError(f"engine: {choice} is not installed: expected 'pip install loadpart[{choice}]'")
        if format_name not in engine.formats:
            raise ModelError(f"the engine {choice} takes no models of the format {format_name!r}")
        return engine
    taking = [name for name in ENGINES if format_name in ENGINES[name].formats]
    for name in taking:
        if ENGINES[name].is_installed():
            return ENGINES[name]
    if taking:
        raise ModelError(f"no engine for the format {format_name!r} is installed: expected {' or '.join(taking)}")
    raise ModelError(f"no engine takes models of the format {format_name!r}: there are {', '.join(ENGINES)}")
