"""Manifests: digest, inputs, outputs, layers and labels of a model, readable without opening its file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loadpart_common.errors import ModelError
from loadpart_common.graph import Graph

if TYPE_CHECKING:
    from pathlib import Path

_FORMAT = 2


@dataclass(frozen=True)
class Manifest:
    """The description that lies beside a model file.

    Attributes:
        name: Name of the model.
        format: Format of the file.
        digest: SHA-256 of the file, in hexadecimal.
        file_bytes: Size of the file.
        graph: The network, with its inputs, outputs and layers.
        labels: Names of the classes, in the order of the scores; may be empty.
    """

    name: str
    format: str
    digest: str
    file_bytes: int
    graph: Graph
    labels: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """The manifest as JSON."""
        document = {
            "format": _FORMAT,
            "name": self.name,
            "model_format": self.format,
            "digest": self.digest,
            "file_bytes": self.file_bytes,
            "labels": list(self.labels),
            "graph": self.graph.to_json(),
        }
        return json.dumps(document, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes, source: str | Path) -> Manifest:
        """Reads what `to_bytes` wrote.

        Raises:
            ModelError: The data is not a manifest; the message names `source`.
        """
        try:
            document = json.loads(data)
            if document["format"] != _FORMAT:
                raise ModelError(f"{source}: expected manifest format {_FORMAT}, got {document['format']!r}")
            return cls(
                name=str(document["name"]),
                format=str(document["model_format"]),
                digest=str(document["digest"]),
                file_bytes=int(document["file_bytes"]),
                graph=Graph.from_json(document["graph"]),
                labels=tuple(map(str, document["labels"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{source} is not a manifest of a model ({error!r}); delete it to have it made again"
            ) from error


def outdated_labels(data: bytes) -> tuple[str, ...] | None:
    """The labels of a manifest that an earlier release wrote; None when the data is no such manifest."""
    try:
        document = json.loads(data)
        return tuple(map(str, document["labels"])) if document["format"] < _FORMAT else None
    except (KeyError, TypeError, ValueError):
        return None
