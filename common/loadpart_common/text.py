"""Text from others, made safe to print and to log."""

from __future__ import annotations

LONGEST_TEXT = 2000
"""Characters of a message from another machine that are kept."""


def printable(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text in one line without control characters: these are escaped, and what is too long is cut off.

    A newline in a name would forge a line of a log, and an escape sequence would steer the reader's terminal.
    """
    kept = text if len(text) <= longest else f"{text[:longest]}..."
    if kept.isprintable():
        return kept
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in kept)


def first_line(error: Exception) -> str:
    """What an error says first: engines write pages."""
    return (str(error).strip().splitlines() or [repr(error)])[0]
