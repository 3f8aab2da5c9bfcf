"""What engines do once for a network on each machine, in a process of its own, and kept in files.

A network that ONNX Runtime is to run is optimised as a whole, which takes seconds and much memory, and tells where it
can be cut; of one that OpenVINO is to run every cut is tried. It is done again when its folder is removed.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loadpart_common.engines.adopted import adopt_into, adopted_folder, folder_for, graph_in
from loadpart_common.engines.elsewhere import run_elsewhere, serve
from loadpart_common.errors import ModelError
from loadpart_common.formats.registry import FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.graph import Graph

_MADE = "network"
_SECONDS_BETWEEN_LINES = 10.0

log = logging.getLogger(__name__)


def adopted_graph(setup: EngineSetup, graph: Graph, path: Path, format_name: str, digest: str) -> Graph:
    """A network with barriers where an engine cannot join it bit for bit; the network is adopted first if need be.

    Args:
        setup: The engine.
        graph: The network.
        path: Its file.
        format_name: The file's format.
        digest: SHA-256 of the file, in hexadecimal.

    Raises:
        ModelError: The engine cannot run the network; the message says why.
    """
    if not setup.engine.adopts:
        return graph
    folder = adopted_folder(setup, digest)
    if folder is None:
        folder = folder_for(setup, digest)
        log.info("%s is made ready for %s, once on this machine", path, setup)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".adopting-") as temporary:
            tell = partial(log.info, "%s: %s", path)
            run_elsewhere(__spec__.name, setup, Path(temporary), format_name, path, digest, on_line=_seldom(tell))
            with contextlib.suppress(OSError):  # another process was quicker
                (Path(temporary) / _MADE).rename(folder)
    return graph_in(folder, graph)


def _seldom(tell: Callable[[str], None]) -> Callable[[str], None]:
    """Tells what is worth a line of a log: not the first seconds, then one line in a while."""
    told = time.monotonic()

    def maybe(line: str) -> None:
        nonlocal told
        if time.monotonic() - told >= _SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            tell(line)

    return maybe


def _adopt(setup: EngineSetup, folder: Path, format_name: str, path: str, digest: str) -> None:
    """What the other process does."""
    made = folder / _MADE
    made.mkdir()
    with contextlib.closing(FORMATS[format_name].open(Path(path))) as model:
        if model.digest() != digest:
            raise ModelError(f"{path} has been changed meanwhile")
        adopt_into(
            made, setup, model, on_progress=lambda done, total: print(f"{done} of {total} cuts tried", flush=True)
        )


if __name__ == "__main__":
    serve(_adopt)
