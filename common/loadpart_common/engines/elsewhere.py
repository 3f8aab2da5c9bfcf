"""Has another process do what an engine should not do in this one.

Engines leave much memory behind, start threads that never end, and die over what strangers wrote. The other process is
confined as far as the machine allows it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.registry import ENGINES
from loadpart_common.errors import ModelError, OffloadError
from loadpart_common.sandbox import confine

if TYPE_CHECKING:
    from collections.abc import Callable

_LONGEST_SECONDS = 900.0


def run_elsewhere(module: str, setup: EngineSetup, folder: Path, *arguments: object) -> str:
    """Runs a module of this package that calls `serve`.

    Args:
        module: Its name.
        setup: The engine.
        folder: Where it may write files.
        arguments: What else it is told, as strings.

    Returns:
        What it printed.

    Raises:
        ModelError: It could not; the message says why.
    """
    settings = (setup.engine.name, setup.threads, setup.precision, setup.provider)
    command = [sys.executable, "-m", module, *map(str, (*settings, folder, *arguments))]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "TMPDIR": str(folder),
        "OPENBLAS_NUM_THREADS": "1",  # threads that run before it is confined would not be
    }
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LONGEST_SECONDS, check=False, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"the engine {setup.engine.name} cannot take the model in: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        raise ModelError(lines[-1])
    return done.stdout


def serve(function: Callable[..., None]) -> None:
    """What such a module does when it is run: calls a function with the setup, the folder and the other arguments."""
    name, threads, precision, provider, folder, *arguments = sys.argv[1:]
    confine(Path(folder))  # workers, which load the model next, say what is missing
    try:
        function(EngineSetup(ENGINES[name], int(threads), precision, provider), Path(folder), *arguments)
    except OffloadError as error:
        sys.exit(str(error))
