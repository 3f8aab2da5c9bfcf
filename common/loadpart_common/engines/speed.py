"""Which engine is the fastest for a network on this machine: each runs it, in a process of its own, and it is kept."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from loadpart_common.engines.adopted import adopt_into
from loadpart_common.engines.elsewhere import run_elsewhere, serve
from loadpart_common.engines.segment_cache import SegmentCache
from loadpart_common.engines.timing import idle_seconds
from loadpart_common.errors import ModelError, OffloadError
from loadpart_common.files import cache_folder, write_atomically
from loadpart_common.formats.registry import FORMATS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadpart_common.engines.base import EngineSetup

_RUNS = 9

log = logging.getLogger(__name__)


def fastest(setups: Sequence[EngineSetup], path: Path, format_name: str, digest: str) -> EngineSetup:
    """The setup that runs a network in the shortest time; what was measured before is not measured again.

    Args:
        setups: The engines that may be taken.
        path: The network's file.
        format_name: The file's format.
        digest: SHA-256 of the file, in hexadecimal.

    Raises:
        ModelError: None of the engines can run the network; the message has what the first one says.
    """
    if len(setups) == 1:
        return setups[0]
    file = cache_folder("speed") / f"{digest}.json"
    known = _read(file)
    seconds: dict[EngineSetup, float] = {}
    failures: list[OffloadError] = []
    for setup in setups:
        key = f"{setup.numerics} {setup}"
        if key not in known:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    known[key] = float(run_elsewhere(__spec__.name, setup, Path(folder), format_name, path, digest))
            except OffloadError as error:
                log.info("%s cannot run %s: %s", setup, path, error)
                failures.append(error)
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps(known, indent=2).encode())
        seconds[setup] = known[key]
    if not seconds:
        raise ModelError(str(failures[0]))
    chosen = min(seconds, key=lambda setup: seconds[setup])
    figures = ", ".join(f"{setup} {each * 1e3:.1f} ms" for setup, each in seconds.items())
    log.info("the fastest engine for %s is %s: %s", path, chosen.engine.name, figures)
    return chosen


def _read(file: Path) -> dict[str, float]:
    """What was measured; nothing where it is damaged, which costs a measurement."""
    try:
        return {str(key): float(value) for key, value in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _measure(setup: EngineSetup, folder: Path, format_name: str, path: str, digest: str) -> None:
    """What the other process does."""
    adopted = folder / "adopted"
    adopted.mkdir()
    with contextlib.closing(SegmentCache(setup.start())) as cache:
        with contextlib.closing(FORMATS[format_name].open(Path(path))) as file:
            adopt_into(adopted, setup, file, trying=False)
        model = cache.load(Path(path), format_name, digest, adopted=adopted)
        whole = model.graph.head(model.graph.layer_count)
        print(idle_seconds(cache, model, whole, runs=_RUNS))


if __name__ == "__main__":
    serve(_measure)
