"""What engines do once for a network on each machine, in a process of its own, and kept in files.

A network that ONNX Runtime is to run is optimised as a whole, which takes seconds and much memory, and tells where it
can be cut. The result is of one machine, engine and version. It is made again when its folder is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from loadpart_common.engines.registry import ENGINES
from loadpart_common.errors import ModelError, OffloadError
from loadpart_common.files import cache_folder
from loadpart_common.formats.registry import FORMATS
from loadpart_common.machine import machine_name, processor_features

if TYPE_CHECKING:
    from loadpart_common.engines.base import Engine
    from loadpart_common.graph import Graph

_FORMAT = 1
_CUTS = "cuts.json"
_KEY_LETTERS = 8
_LONGEST_SECONDS = 600.0
_WHY = "from layers that the engine runs with it as one operator"


def adopted_folder(engine: type[Engine], digest: str) -> Path | None:
    """What an engine has kept of a network; None when it was not adopted on this machine."""
    if not engine.adopts:
        return None
    folder = _folder(engine, digest)
    return folder if (folder / _CUTS).is_file() else None


def adopted_graph(engine: type[Engine], graph: Graph, path: Path, format_name: str, digest: str) -> Graph:
    """A network with barriers where an engine cannot join it bit for bit; the network is adopted first if need be.

    Args:
        engine: The engine.
        graph: The network.
        path: Its file.
        format_name: The file's format.
        digest: SHA-256 of the file, in hexadecimal.

    Raises:
        ModelError: The engine cannot run the network; the message says why.
    """
    if not engine.adopts:
        return graph
    folder = adopted_folder(engine, digest)
    if folder is None:
        folder = _folder(engine, digest)
        _adopt_elsewhere(engine.name, format_name, path, digest, folder)
    try:
        cuts = json.loads((folder / _CUTS).read_text())
        return graph if cuts is None else graph.cut_only_at([int(cut) for cut in cuts], _WHY)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder} is damaged: {error}; remove it to have it made again") from error


def _folder(engine: type[Engine], digest: str) -> Path:
    version = engine.version()
    key = f"{_FORMAT}|{machine_name()}|{processor_features()}|{version}"
    letters = hashlib.sha256(key.encode()).hexdigest()[:_KEY_LETTERS]
    return cache_folder("adopted") / f"{version.replace(' ', '-')}-{letters}" / digest


def _adopt_elsewhere(engine: str, format_name: str, path: Path, digest: str, folder: Path) -> None:
    """Has another process adopt a network: engines leave much memory behind, or die over what strangers wrote.

    Raises:
        ModelError: It could not.
    """
    command = [sys.executable, "-m", __spec__.name, engine, format_name, str(path), digest, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LONGEST_SECONDS, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"the engine {engine} cannot take the model in: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        raise ModelError(lines[-1])


def _adopt(engine: str, format_name: str, path: Path, digest: str, folder: Path) -> None:
    with contextlib.closing(FORMATS[format_name].open(path)) as model:
        if model.digest() != digest:
            raise ModelError(f"{path} has been changed meanwhile")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".adopting-") as temporary:
            made = Path(temporary) / "network"
            made.mkdir()
            cuts = ENGINES[engine].adopt(model, made)
            (made / _CUTS).write_text(json.dumps(None if cuts is None else sorted(cuts)))
            with contextlib.suppress(OSError):  # another process was quicker
                made.rename(folder)


def main() -> None:
    """The other process."""
    engine, format_name, path, digest, folder = sys.argv[1:]
    try:
        _adopt(engine, format_name, Path(path), digest, Path(folder))
    except OffloadError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
