"""Which machine and engine this is, and what was measured of them: kept in files, one a machine, engine and threads."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from loadpart_common.errors import SettingsError
from loadpart_common.latency.model import LatencyModel, Profile, shipped_model
from loadpart_common.store.model_store import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_DIGEST_LETTERS = 16
_KEY_LETTERS = 8


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine_name() -> str:
    """Processor and number of cores."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"


def engine_name() -> str:
    """Engine and version."""
    return f"mindspore {importlib.metadata.version('mindspore')}"


def default_folder() -> Path:
    """Where measurements are kept unless told otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loadpart" / "latency"


class Measurements:
    """Files of what was measured of this machine with this engine and a number of threads.

    Another machine, engine or number of threads has other files, so a folder may be copied or shared.

    Attributes:
        threads: The number of threads.
    """

    def __init__(self, threads: int, folder: Path | None = None) -> None:
        self.threads = threads
        key = hashlib.sha256(f"{machine_name()}|{engine_name()}|{threads}".encode()).hexdigest()[:_KEY_LETTERS]
        self._folder = folder or default_folder()
        self._name = f"{engine_name().replace(' ', '-')}-{threads}-threads-{key}"

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
        return model or shipped_model()

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
