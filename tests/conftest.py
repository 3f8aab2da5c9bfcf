from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent

# Daemons, workers and command lines that tests start load the toy engine as a plugin, as a user would.
os.environ["LOADPART_PLUGINS"] = "tests.toy"
os.environ["PYTHONPATH"] = str(ROOT)

from benchmarks.daemon import Daemon, daemon  # noqa: E402

from tests.support import store_of  # noqa: E402
from tests.toy_networks import write_store  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def _no_measurements(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hides the user's own measurements, so that tests run as on a machine that was never calibrated."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache-home"))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with the toy networks."""
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def server(store: Path) -> Iterator[Daemon]:
    """A daemon that serves the toy networks, with metrics."""
    with daemon("--store", str(store), "--threads", "1", "--metrics-listen", "127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for fetched models."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every network of `tests.networks`; written in a process of its own, to free its memory after."""
    folder = tmp_path_factory.mktemp("exported")
    subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.networks", folder], check=True, cwd=ROOT)
    return folder


@pytest.fixture(scope="session")
def mindspore_server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that serves MindSpore networks."""
    folder = store_of(exported, tmp_path_factory.mktemp("mindspore-store"))
    with daemon("--store", str(folder), "--threads", "1") as running:
        yield running


@pytest.fixture(scope="session")
def mindspore_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for fetched MindSpore models."""
    return tmp_path_factory.mktemp("mindspore-cache")


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    """A picture that is not uniform, of an unusual shape."""
    across, down = np.meshgrid(np.arange(90), np.arange(60))
    pixels = np.stack([across * 2, down * 4, (across * down) % 256], axis=-1).astype(np.uint8)
    path = tmp_path / "photograph.png"
    Image.fromarray(pixels).save(path)
    return path
