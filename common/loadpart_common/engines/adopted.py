"""What some engines need of a network before they run segments of it, and where they can cut it.

It is in a folder for each network, of one machine, engine, version and setup. `adoption` has it made in a process of
its own and keeps it.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from loadpart_common.engines.exactness import exact_cuts, likely_cuts
from loadpart_common.errors import ModelError
from loadpart_common.files import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.formats.base import OpenModel
    from loadpart_common.graph import Graph

_CUTS = "cuts.json"
_FORMAT = 3
_WHY = "from layers that the engine runs with it as one operator"


def adopted_folder(setup: EngineSetup, digest: str) -> Path | None:
    """What an engine has kept of a network; None when it was not adopted on this machine."""
    if not setup.engine.adopts:
        return None
    folder = folder_for(setup, digest)
    return folder if (folder / _CUTS).is_file() else None


def folder_for(setup: EngineSetup, digest: str) -> Path:
    """Where an engine keeps what it needs of a network."""
    return cache_folder("adopted") / f"{setup.version.replace(' ', '-')}-{_FORMAT}-{setup.numerics}" / digest


def adopt_into(
    folder: Path,
    setup: EngineSetup,
    model: OpenModel,
    *,
    trying: bool = True,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> None:
    """Fills an empty folder with what an engine needs of a network.

    Args:
        folder: The folder.
        setup: The engine.
        model: The network.
        trying: Whether to try the cuts, where the engine does not know which are exact: this takes minutes. Otherwise
            those are taken that are likely to be.
        on_progress: Called with the cuts that are tried and those of all.

    Raises:
        ModelError: The engine cannot run the network; the message names the operator.
    """
    cuts = setup.engine.adopt(model, folder, setup)
    graph = model.graph if cuts is None else model.graph.cut_only_at(cuts, _WHY)
    if setup.engine.cuts_must_be_tried(setup):
        if trying:
            with contextlib.closing(setup.start()) as engine, contextlib.closing(engine.load(model, folder)) as loaded:
                cuts = exact_cuts(loaded, graph, on_progress)
        else:
            cuts = likely_cuts(graph)
    (folder / _CUTS).write_text(json.dumps(None if cuts is None else sorted(cuts)))


def graph_in(folder: Path, graph: Graph) -> Graph:
    """A network with barriers where the engine that filled a folder cannot join it bit for bit.

    Raises:
        ModelError: The folder is damaged.
    """
    try:
        cuts = json.loads((folder / _CUTS).read_text())
        return graph if cuts is None else graph.cut_only_at([int(cut) for cut in cuts], _WHY)
    except (OSError, ValueError, TypeError) as error:
        raise ModelError(f"{folder} is damaged: {error}; remove it to have it made again") from error
