"""Settings of the command line: flags win over environment variables, these over a TOML file, this over defaults."""

from __future__ import annotations

import math
import os
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadpart_common.engines.choice import DEFAULT, EXACT, EngineChoice
from loadpart_common.errors import SettingsError
from loadpart_common.planning.plan import DEFAULT_CODEC
from loadpart_common.wire.credentials import Credentials
from loadpart_common.wire.endpoint import ADDRESS, Endpoint, is_address, is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENV_PREFIX = "LOADPART_DEVICE_"


DEFAULT_SERVER = Endpoint("127.0.0.1:50051")


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the device; what they mean is told at `OffloadClient`."""

    server: tuple[Endpoint, ...] = (DEFAULT_SERVER,)
    model: str = ""
    policy: str = "load-aware"
    deadline: float | None = None
    engine: str = DEFAULT
    precision: str = EXACT
    provider: str = ""
    exact: bool = False
    threads: int | None = None
    cache: str | None = None
    latency_folder: str | None = None
    accuracy_folder: str | None = None
    decision_log: str | None = None
    connect_timeout: float = 5.0
    metrics_listen: str | None = None
    hedge: bool = True
    codecs: tuple[str, ...] | None = None
    max_error: float | None = None
    min_agreement: float | None = None
    reply_codec: str = DEFAULT_CODEC
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    token_file: str | None = None
    token: str | None = None
    tls: bool = False
    server_name: str = ""
    insecure: bool = False

    @property
    def engine_choice(self) -> EngineChoice:
        """What the settings say of the engine."""
        return EngineChoice(self.engine, self.threads or 0, self.precision, self.provider)


_FLAGS = ("hedge", "exact", "tls", "insecure")
_CREDENTIALS = ("ca", "certificate", "key", "token_file")
_TRUTHS = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}

_NUMBERS: dict[str, type[int] | type[float]] = {
    "deadline": float,
    "threads": int,
    "connect_timeout": float,
    "max_error": float,
    "min_agreement": float,
}


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
    for name in _FLAGS:
        if name in values:
            values[name] = _truth(name, values[name])
    if values.get("codecs") is not None:
        values["codecs"] = _names("codecs", values["codecs"])
    values["server"] = parse_servers(values.get("server", DEFAULT_SERVER.target), _credentials(values))
    settings = Settings(**values)
    if needs_model and not settings.model:
        raise SettingsError("model: expected the name of a model, got nothing")
    return settings


def parse_servers(servers: str | Endpoint | Sequence[str | Endpoint], credentials: Credentials) -> tuple[Endpoint, ...]:
    """The endpoints of one or more servers, each once.

    Args:
        servers: Endpoints, or texts as a user types them, several in one with commas between them.
        credentials: Those of the servers that are given as a text.

    Raises:
        SettingsError: There are none, or one is no endpoint.
    """
    found: dict[Endpoint, None] = {}
    for server in servers if isinstance(servers, (list, tuple)) else [servers]:
        if isinstance(server, Endpoint):
            found[server] = None
        else:
            found |= {Endpoint.parse(name, credentials=credentials): None for name in _names("server", server)}
    if not found:
        raise SettingsError(f"server: expected {ADDRESS}, once or more, got nothing")
    return tuple(found)


def _names(field: str, value: Any) -> tuple[str, ...]:
    """The names in a text with commas between them, or in a list."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        raise SettingsError(f"{field}: expected names, as a list or with commas between them, got {value!r}")
    return tuple(filter(None, (name.strip() for name in value)))


def parse_policy(text: str) -> str | int:
    """A policy as it is typed: a name, or the number of a cut."""
    return int(text) if text.isdecimal() else text


def check_deadline(seconds: float | None) -> float | None:
    """A deadline that can be one.

    Raises:
        SettingsError: It is not a number of seconds above 0.
    """
    if seconds is None:
        return None
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
        raise SettingsError(f"deadline: expected a number of seconds above 0, got {seconds!r}")
    return float(seconds)


def check_metrics_listen(listen: str, *, insecure: bool) -> None:
    """Refuses to show the metrics to a network by oversight.

    Raises:
        SettingsError: The address can be reached from elsewhere, and `insecure` does not say that it may be.
    """
    if is_address(listen) and not is_loopback(listen) and not insecure:
        raise SettingsError(
            f"metrics_listen: {listen} is open to a network, in the clear and to everybody: "
            "expected an address of this machine alone, or 'insecure' to do so all the same"
        )


def credentials_from(environment: Mapping[str, str] = os.environ) -> Credentials:
    """The credentials that the environment names, as the settings do: `LOADPART_DEVICE_CA` and so on.

    Raises:
        SettingsError: They do not belong together.
    """
    names = (*_CREDENTIALS, "token", "tls", "server_name")
    found = {name: environment.get(f"{ENV_PREFIX}{name.upper()}") for name in names}
    values: dict[str, Any] = {name: text for name, text in found.items() if text}
    if "tls" in values:
        values["tls"] = _truth("tls", values["tls"])
    return _credentials(values)


def _credentials(values: Mapping[str, Any]) -> Credentials:
    paths = {name: Path(values[name]) for name in _CREDENTIALS if values.get(name)}
    return Credentials(
        **paths,
        token=values.get("token"),
        tls=values.get("tls", False),
        server_name=values.get("server_name", ""),
    )


def _truth(name: str, value: Any) -> bool:
    truth = value if isinstance(value, bool) else _TRUTHS.get(str(value).lower())
    if truth is None:
        raise SettingsError(f"{name}: expected true or false, got {value!r}")
    return truth


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
    if not 0 < number < math.inf:
        raise SettingsError(f"{name}: expected {what} above 0, got {value!r}")
    return number
