"""The engines by name. A new engine is a folder beside this file and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.choice import AUTO, DEFAULT
from loadpart_common.errors import ModelError, SettingsError
from loadpart_common.plugins import Registry

if TYPE_CHECKING:
    from loadpart_common.engines.base import Engine
    from loadpart_common.engines.choice import EngineChoice

ENGINES: Registry[type[Engine]] = Registry("engine")

DEFAULT_ENGINE = "mindspore"


def _mindspore() -> type[Engine]:
    from loadpart_common.engines.mindspore.engine import MindSporeEngine

    return MindSporeEngine


ENGINES.register(DEFAULT_ENGINE, _mindspore)


def _onnxruntime() -> type[Engine]:
    from loadpart_common.engines.onnxruntime.engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine


ENGINES.register("onnxruntime", _onnxruntime)


def _openvino() -> type[Engine]:
    from loadpart_common.engines.openvino.engine import OpenVinoEngine

    return OpenVinoEngine


ENGINES.register("openvino", _openvino)


def calibrated_setup(choice: EngineChoice) -> EngineSetup:
    """The engine that is calibrated: the chosen one, or the first one that is installed.

    Raises:
        SettingsError: The engine that was chosen does not exist, is not installed, or does not offer what was chosen.
    """
    if choice.name not in {DEFAULT, AUTO}:
        return _setup(choice, ENGINES[choice.name])
    setups = _installed(choice, list(ENGINES))
    if not setups:
        raise SettingsError(f"engine: none is installed: expected one of {', '.join(ENGINES)}")
    return setups[0]


def setups_for(format_name: str, choice: EngineChoice) -> list[EngineSetup]:
    """The engines among which the fastest is to be taken for models of a format.

    Args:
        format_name: Name of the format.
        choice: What the settings say. An engine that they name is the only one; so is the engine of reference by
            default, where it is installed and takes the format.

    Raises:
        SettingsError: The engine that was chosen does not exist, is not installed, or does not offer the precision or
            the provider.
        ModelError: It does not take the format, or no engine does.
    """
    if choice.name not in {DEFAULT, AUTO}:
        setup = _setup(choice, ENGINES[choice.name])
        if format_name not in setup.engine.formats:
            raise ModelError(f"the engine {choice.name} takes no models of the format {format_name!r}")
        return [setup]
    taking = [name for name in ENGINES if format_name in ENGINES[name].formats]
    if not taking:
        raise ModelError(f"no engine takes models of the format {format_name!r}: there are {', '.join(ENGINES)}")
    setups = _installed(choice, taking)
    if not setups:
        raise ModelError(f"no engine for the format {format_name!r} is installed: expected {' or '.join(taking)}")
    if choice.name == DEFAULT and setups[0].engine.name == DEFAULT_ENGINE:
        return setups[:1]
    return setups


def _installed(choice: EngineChoice, names: list[str]) -> list[EngineSetup]:
    """Those of some engines that are installed and offer what was chosen.

    Raises:
        SettingsError: Some are installed, but none offers it; the message is that of the first one.
    """
    setups, refusals = [], []
    for engine in (ENGINES[name] for name in names if ENGINES[name].is_installed()):
        try:
            setups.append(_setup(choice, engine))
        except SettingsError as error:
            refusals.append(error)
    if refusals and not setups:
        raise refusals[0]
    return setups


def _setup(choice: EngineChoice, engine: type[Engine]) -> EngineSetup:
    """An engine, set up as was chosen.

    Raises:
        SettingsError: It is not installed, or does not offer the precision or the provider.
    """
    if not engine.is_installed():
        raise SettingsError(f"engine: {engine.name} is not installed: expected 'pip install loadpart[{engine.name}]'")
    provider = choice.provider.lower()
    if provider in {"", "cpu"}:
        provider = ""
    else:
        engine.check_provider(provider)
    engine.check_precision(choice.precision, provider)
    return EngineSetup(engine, choice.threads, choice.precision, provider)
