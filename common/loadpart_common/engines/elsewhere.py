"""Has another process do what an engine should not do in this one.

Engines leave much memory behind, start threads that never end, and die over what strangers wrote. The other process is
confined as far as the machine allows it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.registry import ENGINES
from loadpart_common.errors import ModelError, OffloadError
from loadpart_common.sandbox import confine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LONGEST_SECONDS = 3600.0


def run_elsewhere(
    module: str,
    setup: EngineSetup,
    folder: Path,
    *arguments: object,
    on_line: Callable[[str], None] = lambda _line: None,
) -> str:
    """Runs a module of this package that calls `serve`.

    Args:
        module: Its name.
        setup: The engine.
        folder: Where it may write files.
        arguments: What else it is told, as strings.
        on_line: Called with each line that it prints.

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
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=complaints, text=True, env=environment) as process,
        _ended(process, _LONGEST_SECONDS),
    ):
        lines = []
        for line in process.stdout or ():
            lines.append(line)
            on_line(line.rstrip())
        if process.wait():
            complaints.seek(0)
            ended = (
                f"the engine {setup.engine.name} cannot take the model in: its process ended with {process.returncode}"
            )
            raise ModelError((complaints.read().strip().splitlines() or [ended])[-1])
    return "".join(lines)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """Kills a process after a while, and at the end of the block."""
    clock = threading.Timer(seconds, process.kill)
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()
        process.kill()


def serve(function: Callable[..., None]) -> None:
    """What such a module does when it is run: calls a function with the setup, the folder and the other arguments."""
    name, threads, precision, provider, folder, *arguments = sys.argv[1:]
    confine(Path(folder))  # workers, which load the model next, say what is missing
    try:
        function(EngineSetup(ENGINES[name], int(threads), precision, provider), Path(folder), *arguments)
    except OffloadError as error:
        sys.exit(str(error))
