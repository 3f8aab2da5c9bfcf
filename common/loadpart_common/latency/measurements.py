"""What was measured of this machine, kept in files: one for each machine, engine and number of threads."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeVar

from loadpart_common.errors import SettingsError
from loadpart_common.files import cache_folder, write_atomically
from loadpart_common.latency.model import LatencyModel, shipped_model
from loadpart_common.latency.profile import Profile
from loadpart_common.machine import machine_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadpart_common.engines.base import EngineSetup

T = TypeVar("T")

_DIGEST_LETTERS = 16
_KEY_LETTERS = 8


def default_folder() -> Path:
    """Where measurements are kept unless told otherwise."""
    return cache_folder("latency")


class Measurements:
    """Files of what was measured of this machine with one engine, as it was set up.

    Another machine, engine or setup has other files, so a folder may be copied or shared.

    Attributes:
        setup: The engine and how it computes.
    """

    def __init__(self, setup: EngineSetup, folder: Path | None = None) -> None:
        self.setup = setup
        version, threads = setup.version, setup.threads
        key = hashlib.sha256(f"{machine_name()}|{version}|{threads}".encode()).hexdigest()[:_KEY_LETTERS]
        self._folder = folder or default_folder()
        self._name = f"{version.replace(' ', '-')}-{threads}-threads-{key}"

    @property
    def model_path(self) -> Path:
        """The file of the latency model."""
        return self._folder / f"{self._name}.json"

    def profile_path(self, digest: str) -> Path:
        """The file of the profile of a network."""
        return self._folder / f"{self._name}-{digest[:_DIGEST_LETTERS]}.json"

    def model(self) -> LatencyModel:
        """The calibrated latency model, or else the shipped one.

        Raises:
            SettingsError: The file is damaged or foreign.
        """
        model = _read(self.model_path, LatencyModel.from_json)
        if model is not None and model.machine != machine_name():
            raise SettingsError(f"{self.model_path}: expected a model of {machine_name()}, got one of {model.machine}")
        return model or shipped_model(self.setup)

    def profile(self, digest: str) -> Profile:
        """The profile of a network; an empty one when there is none.

        Raises:
            SettingsError: The file is damaged or foreign.
        """
        return _read(self.profile_path(digest), Profile.from_json) or Profile({}, {})

    def save_model(self, model: LatencyModel) -> None:
        """Keeps a latency model."""
        _write(self.model_path, model.to_json())

    def save_profile(self, digest: str, profile: Profile) -> None:
        """Keeps the profile of a network."""
        _write(self.profile_path(digest), profile.to_json())


def _read(path: Path, parse: Callable[[str, Path], T]) -> T | None:
    try:
        return parse(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error}") from error
