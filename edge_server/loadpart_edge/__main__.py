"""Entry point of `loadpart-edge`, and of `python -m loadpart_edge`."""

from __future__ import annotations

# The C module below `signal`, since importing that one takes long enough for Ctrl-C to come in the middle.
import _signal as signal  # type: ignore[import-not-found]
import sys

_SERVER_EXTRA = frozenset({"pydantic", "pydantic_settings", "pynvml"})


def main() -> None:
    """Runs the command line; says what to install where only the device's part is."""
    # Until there is anything to undo, Ctrl-C ends the process without a traceback; most commands change that back.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        from loadpart_edge import cli
    except ModuleNotFoundError as error:
        if error.name not in _SERVER_EXTRA:
            raise
        sys.exit(f"loadpart-edge: {error.name} is missing; the server needs: pip install 'loadpart[server]'")
    cli.main()


if __name__ == "__main__":
    main()
