"""Manifests: digest, format and labels of a model.

The network itself is always read from the model file, which the digest covers; a manifest could claim anything.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadpart_common.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

_FORMAT = 3

MOST_BYTES = 16 << 20
"""Largest manifest that is read."""

# Overflow: a number of bytes that is infinite. Recursion: JSON that is nested too deeply.
_UNREADABLE = (KeyError, TypeError, ValueError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Manifest:
    """The description that lies beside a model file.

    Attributes:
        name: Name of the model.
        format: Format of the file.
        digest: SHA-256 of the file, in hexadecimal.
        file_bytes: Size of the file.
        labels: Names of the classes, in the order of the scores; may be empty.
    """

    name: str
    format: str
    digest: str
    file_bytes: int
    labels: tuple[str, ...] = ()

    @property
    def labels_digest(self) -> str:
        """SHA-256 of the labels, in hexadecimal; the digest of the file does not cover them."""
        return hashlib.sha256(json.dumps(self.labels).encode()).hexdigest()

    def to_bytes(self) -> bytes:
        """The manifest as JSON."""
        document = {
            "format": _FORMAT,
            "name": self.name,
            "model_format": self.format,
            "digest": self.digest,
            "file_bytes": self.file_bytes,
            "labels": list(self.labels),
        }
        return json.dumps(document, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes, source: str | Path) -> Manifest:
        """Reads what `to_bytes` wrote.

        Raises:
            ModelError: The data is not a manifest; the message names `source`.
        """
        if len(data) > MOST_BYTES:
            raise ModelError(f"{source}: expected a manifest of at most {MOST_BYTES} bytes, got {len(data)}")
        try:
            document = json.loads(data)
            if document["format"] != _FORMAT:
                raise ModelError(f"{source}: expected manifest format {_FORMAT}, got {document['format']!r}")
            manifest = cls(
                name=str(document["name"]),
                format=str(document["model_format"]),
                digest=str(document["digest"]),
                file_bytes=int(document["file_bytes"]),
                labels=tuple(map(str, document["labels"])),
            )
            manifest.to_bytes()  # JSON may hold halves of characters, which cannot be written or printed
        except _UNREADABLE as error:
            raise ModelError(
                f"{source} is not a manifest of a model ({error!r}); delete it to have it made again"
            ) from error
        return manifest


def outdated_labels(data: bytes) -> tuple[str, ...] | None:
    """The labels of a manifest that an earlier release wrote; None when the data is no such manifest."""
    try:
        document = json.loads(data)
        return tuple(map(str, document["labels"])) if document["format"] < _FORMAT else None
    except _UNREADABLE:
        return None
