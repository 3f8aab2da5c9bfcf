"""Measurements as JSON documents of a known format."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from loadpart_common.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FORMAT = 2


def write_document(content: dict[str, Any]) -> str:
    """A readable document."""
    return json.dumps({"format": _FORMAT, **content}, indent=2)


@contextlib.contextmanager
def reading_document(what: str, text: str, source: str | Path, command: str) -> Iterator[dict[str, Any]]:
    """Gives a document's content; an error while the block reads it is reported as a damaged or foreign file.

    Args:
        what: What the document should be.
        text: The document.
        source: Where it came from, for the message.
        command: The command that makes a new one.

    Raises:
        SettingsError: It is something else; the message names `source`.
    """
    try:
        document = json.loads(text)
        if document["format"] != _FORMAT:
            raise SettingsError(
                f"{source}: expected {what} format {_FORMAT}, got {document['format']!r}; delete it and {command} again"
            )
        yield document
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(f"{source} is not a {what} ({error!r}); delete it and {command} again") from error
