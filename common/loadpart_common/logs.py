"""How both sides write logs."""

from __future__ import annotations

import logging
import sys

from loadpart_common.text import printable

_LONGEST_MESSAGE = 20_000


class _OneLine(logging.Formatter):
    """Writes every message as one line, whatever names of models or devices are in it; tracebacks follow it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging calls it
        record.message = printable(record.message, _LONGEST_MESSAGE)
        return super().formatMessage(record)


def log_to_stderr(level: str, who: str) -> None:
    """Sends the process's log to stderr.

    Args:
        level: Name of the least level that is written.
        who: What the lines call this process; may contain fields of log records.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"%(asctime)s %(levelname)s {who}: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
