"""What a test has another process do; see `test_other_engines`."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

from loadpart_common.engines.elsewhere import serve

if TYPE_CHECKING:
    from loadpart_common.engines.base import EngineSetup


def try_to_leave(_: EngineSetup, folder: Path, outside: str) -> None:
    """Writes inside, then outside, then opens a socket; prints what came of each."""
    for attempt in (
        lambda: (folder / "inside").write_text("x"),
        lambda: (Path(outside) / "outside").write_text("x"),
        socket.socket,
    ):
        try:
            attempt()
            print("done")
        except OSError as error:
            print(type(error).__name__)


if __name__ == "__main__":
    serve(try_to_leave)
