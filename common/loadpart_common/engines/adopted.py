"""Where that lies which engines keep of networks that they have adopted: see `adoption`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.files import cache_folder

if TYPE_CHECKING:
    from pathlib import Path

    from loadpart_common.engines.base import EngineSetup

CUTS = "cuts.json"
"""The file with the cuts at which segments give the bits of the whole network."""

_FORMAT = 2


def adopted_folder(setup: EngineSetup, digest: str) -> Path | None:
    """What an engine has kept of a network; None when it was not adopted on this machine."""
    if not setup.engine.adopts:
        return None
    folder = folder_for(setup, digest)
    return folder if (folder / CUTS).is_file() else None


def folder_for(setup: EngineSetup, digest: str) -> Path:
    """Where an engine keeps what it needs of a network."""
    return cache_folder("adopted") / f"{setup.version.replace(' ', '-')}-{_FORMAT}-{setup.numerics}" / digest
