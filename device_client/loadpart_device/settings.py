"""Settings of the command line: flags win over environment variables, these over a TOML file, this over defaults."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from loadpart_common.errors import SettingsError
from loadpart_common.wire.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ENV_PREFIX = "LOADPART_DEVICE_"


DEFAULT_SERVER = Endpoint("127.0.0.1:50051")


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the device; what they mean is told at `OffloadClient`."""

    server: Endpoint = DEFAULT_SERVER
    model: str = ""
    policy: str = "load-aware"
    deadline: float | None = None
    threads: int | None = None
    cache: str | None = None
    latency_folder: str | None = None
    decision_log: str | None = None
    connect_timeout: float = 5.0
    metrics_listen: str | None = None


_NUMBERS: dict[str, type[int] | type[float]] = {"deadline": float, "threads": int, "connect_timeout": float}


def load_settings(flags: Mapping[str, Any], config: Path | None = None, *, needs_model: bool = True) -> Settings:
    """Settings from flags (those that are not None), the environment and a TOML file.

    Args:
        flags: What was given on the command line, by name.
        config: The TOML file, if there is one.
        needs_model: Whether a model has to be named.

    Raises:
        SettingsError: A value is wrong, a name unknown, or the file missing; the message names the field.
    """
    known = {field.name for field in fields(Settings)}
    values = _read_file(config, known) if config is not None else {}
    for name in known:
        if (text := os.environ.get(f"{ENV_PREFIX}{name.upper()}")) is not None:
            values[name] = text
    values.update({name: value for name, value in flags.items() if value is not None})
    for name, kind in _NUMBERS.items():
        if values.get(name) is not None:
            values[name] = _number(name, kind, values[name])
    if "server" in values:
        values["server"] = Endpoint.parse(str(values["server"]))
    settings = Settings(**values)
    if needs_model and not settings.model:
        raise SettingsError("model: expected the name of a model, got nothing")
    return settings


def parse_policy(text: str) -> str | int:
    """A policy as it is typed: a name, or the number of a cut."""
    return int(text) if text.isdecimal() else text


def _read_file(config: Path, known: set[str]) -> dict[str, Any]:
    try:
        values = tomllib.loads(config.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"no settings file at {config}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config}: {error}") from error
    if unknown := sorted(set(values) - known):
        raise SettingsError(f"{config}: unknown setting {unknown[0]!r}: expected one of {', '.join(sorted(known))}")
    return values


def _number(name: str, kind: type[int] | type[float], value: Any) -> int | float:
    what = "a whole number" if kind is int else "a number"
    try:
        number = kind(value)
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{name}: expected {what}, got {value!r}") from error
    if number <= 0:
        raise SettingsError(f"{name}: expected {what} above 0, got {value!r}")
    return number
