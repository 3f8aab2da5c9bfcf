"""Settings of the daemon: flags win over environment variables, these over a TOML file, this over defaults."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, InstanceOf, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from loadpart_common.codecs.registry import CODECS
from loadpart_common.engines.choice import DEFAULT, EXACT, EngineChoice
from loadpart_common.errors import SettingsError
from loadpart_common.latency.measurements import default_folder
from loadpart_common.machine import usable_cores
from loadpart_common.planning.plan import DEFAULT_CODEC
from loadpart_common.wire.credentials import ServerTls
from loadpart_common.wire.endpoint import ADDRESS, Endpoint, is_address, is_loopback
from loadpart_common.wire.limits import DEFAULT_MAX_MESSAGE_BYTES
from loadpart_edge.workers.cluster.environment import OWN

if TYPE_CHECKING:
    from collections.abc import Mapping

ENV_PREFIX = "LOADPART_EDGE_"


def _address(value: object) -> object:
    """Checks HOST:PORT."""
    if isinstance(value, str) and not is_address(value):
        raise ValueError(f"expected {ADDRESS}, got {value!r}")
    return value


def _names(value: object) -> object:
    """Splits a comma-separated list."""
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


def _resources(value: object) -> object:
    """Splits NAME=AMOUNT,NAME=AMOUNT."""
    names = _names(value)
    if not isinstance(names, tuple):
        return names
    resources = {}
    for each in names:
        name, _, amount = each.partition("=")
        try:
            resources[name] = float(amount)
        except ValueError:
            resources[name] = 0.0
        if not (name and 0 < resources[name] < math.inf):
            raise ValueError(f"expected NAME=AMOUNT, such as CPU=4, with an amount above 0; got {each!r}")
    if not resources:
        raise ValueError("expected at least one NAME=AMOUNT, such as loadpart=1")
    return resources


def _codecs(value: object) -> object:
    """Splits a list of codecs; the raw one is always among them."""
    names = _names(value)
    if isinstance(names, tuple):
        for name in names:
            if name not in CODECS:
                raise ValueError(f"expected some of {', '.join(CODECS)}, got {name!r}")
        return tuple(dict.fromkeys((DEFAULT_CODEC, *names)))
    return names


def _endpoint(value: object) -> object:
    """Turns HOST:PORT into an endpoint."""
    _address(value)
    return Endpoint(value) if isinstance(value, str) else value


Address = Annotated[str, BeforeValidator(_address)]


def default_store() -> Path:
    """Where models are kept unless a setting says otherwise."""
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "loadpart" / "models"


class Settings(BaseSettings):
    """Settings of the edge server daemon."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    listen: Annotated[InstanceOf[Endpoint], BeforeValidator(_endpoint)] = Field(
        Endpoint("127.0.0.1:50051"), description="HOST:PORT for gRPC; port 0 picks a free one"
    )
    metrics_listen: Address | None = Field(
        None, description="HOST:PORT for Prometheus metrics; none are served when not given; port 0 picks a free one"
    )
    store: Path = Field(default_factory=default_store, description="folder of the model store")
    latency_folder: Path = Field(
        default_factory=default_folder, description="folder for what is measured of this machine"
    )
    models: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        (), description="models to serve, separated by commas; all in the store when not given"
    )
    insecure: bool = Field(
        False, description="listen to a network although anybody there may read along, or use the server"
    )
    tls_certificate: Path | None = Field(None, description="PEM file with the server's certificate; none: in the clear")
    tls_key: Path | None = Field(None, description="PEM file with the private key of the certificate")
    tls_client_ca: Path | None = Field(
        None, description="PEM file with the authorities that devices' certificates must come from; none: not asked for"
    )
    clients: Path | None = Field(
        None, description="TOML file of those who may use the server, with their rights; none: whoever can connect"
    )
    open_health: bool = Field(
        False, description="let any client ask for health, as orchestrators do, which have no credentials"
    )
    health_listen: Annotated[InstanceOf[Endpoint] | None, BeforeValidator(_endpoint)] = Field(
        None,
        description="HOST:PORT for gRPC's health service alone, in the clear and for everybody, as the probes of "
        "Kubernetes need it; none is served there when not given",
    )
    workers: int = Field(
        default_factory=lambda: max(1, usable_cores() // 4),
        ge=1,
        le=256,
        description="worker processes; each holds all models",
    )
    cluster: str | None = Field(
        None,
        description="Ray cluster whose nodes the workers are on: HOST:PORT, or auto for an own one on this machine; "
        "none: workers are processes of this machine",
    )
    workers_min: int = Field(1, ge=1, le=256, description="workers that there always are to be on a cluster")
    workers_max: int = Field(
        0,
        ge=0,
        le=256,
        description="workers that there may be on a cluster while the backlog calls for them; 0: as many as the nodes "
        "have room for, whatever the backlog",
    )
    workers_down_seconds: float = Field(
        60.0, gt=0, description="how long fewer workers must have been enough before some are given up"
    )
    worker_resources: Annotated[dict[str, float], NoDecode, BeforeValidator(_resources)] = Field(
        default_factory=lambda: {"loadpart": 1.0},
        description="what a worker takes of a node of the cluster, such as CPU=4,GPU=1; default: loadpart=1",
    )
    engine: str = Field(
        DEFAULT,
        description="engine that runs tails; default: MindSpore where it is installed; auto: the fastest, as measured",
    )
    precision: str = Field(EXACT, description="exact, or what the engine offers, such as bfloat16")
    provider: str = Field("", description="what the engine computes on, such as cuda; the processor when not given")
    codecs: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_codecs)] = Field(
        default_factory=lambda: tuple(CODECS), description="codecs that devices may use, separated by commas; all"
    )
    threads: int = Field(0, ge=0, le=1024, description="threads of one worker; 0 shares the cores among the workers")
    queue_limit: int = Field(64, ge=1, description="jobs that may wait; more are refused")
    max_message_bytes: int = Field(
        DEFAULT_MAX_MESSAGE_BYTES, ge=1 << 10, lt=1 << 31, description="largest message that is accepted"
    )
    memory_bytes: int = Field(
        1 << 30, ge=16 << 20, description="requests that are held at a time, in bytes; more are refused"
    )
    refusals_per_second: float = Field(
        5.0, gt=0, description="wrong calls on a connection that slow nothing down; with more, its calls have to wait"
    )
    segment_memory_bytes: int = Field(
        1 << 30, ge=1 << 20, description="memory of a worker's compiled tails, weights left out; the oldest are dropped"
    )
    status_period_seconds: float = Field(0.5, gt=0, description="period of the status stream")
    drain_seconds: float = Field(30.0, ge=0, description="how long SIGTERM waits for jobs to finish")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error")

    config_file: ClassVar[Path | None] = None

    @model_validator(mode="after")
    def _check_door(self) -> Settings:
        """Refuses to open the server to a network by oversight."""
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate, tls_key: expected both or neither")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca: expected tls_certificate and tls_key with it")
        if self.cluster not in (None, OWN) and not is_address(str(self.cluster)):
            raise ValueError(f"cluster: expected {ADDRESS}, or {OWN}; got {self.cluster!r}")
        if 0 < self.workers_max < self.workers_min:
            raise ValueError(f"workers_max: expected workers_min ({self.workers_min}) or more, got {self.workers_max}")
        if self.insecure:
            return self
        if not is_loopback(self.listen.target) and not (self.tls and (self.tls_client_ca or self.clients)):
            raise ValueError(
                f"listen: {self.listen} is open to a network: expected tls_certificate, tls_key and a file of clients "
                "or tls_client_ca ('loadpart-edge credentials init' makes them), or 'insecure' to do without"
            )
        if self.metrics_listen is not None and not is_loopback(self.metrics_listen) and not self.tls_client_ca:
            raise ValueError(
                f"metrics_listen: {self.metrics_listen} is open to a network: expected tls_client_ca, from which "
                "whoever scrapes has a certificate, or 'insecure' to do without"
            )
        return self

    @property
    def metrics_tls(self) -> ServerTls | None:
        """How metrics are encrypted: with certificates on both sides, or not at all."""
        return self.tls if self.tls_client_ca is not None else None

    @property
    def tls(self) -> ServerTls | None:
        """How the server encrypts; None when it does not."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return ServerTls(self.tls_certificate, self.tls_key, self.tls_client_ca)

    @property
    def worker_threads(self) -> int:
        """Threads of one worker."""
        return self.threads or max(1, usable_cores() // self.workers)

    @property
    def engine_choice(self) -> EngineChoice:
        """What the settings say of a worker's engine."""
        return EngineChoice(self.engine, self.worker_threads, self.precision, self.provider)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the signature is pydantic's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then environment, then file."""
        sources = [init_settings, env_settings]
        if cls.config_file is not None:
            sources.append(TomlConfigSettingsSource(settings_cls, cls.config_file))
        return tuple(sources)


def load_settings(flags: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Settings from flags (those that are not None), the environment and a TOML file.

    Raises:
        SettingsError: A value is wrong, a name unknown, or the file missing; the message names the field.
    """
    if config is not None and not config.is_file():
        raise SettingsError(f"no settings file at {config}")
    kind = type("Settings", (Settings,), {"config_file": config, "__annotations__": {"config_file": ClassVar}})
    try:
        return kind(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[no-any-return]
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']} (got {problem['input']!r})"
            if problem["loc"]
            else str(problem["msg"]).removeprefix("Value error, ")  # of a check of several fields, which names them
            for problem in error.errors()
        )
        raise SettingsError(problems) from error
    except ValueError as error:  # a TOML file that is none
        raise SettingsError(f"{config}: {error}") from error
