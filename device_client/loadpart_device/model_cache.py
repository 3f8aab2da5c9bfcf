"""Fetches models from the server and keeps them, by digest, in a folder of the device."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from loadpart_common.errors import ModelError, ModelNotFoundError, OffloadError, ServerError
from loadpart_common.files import write_atomically
from loadpart_common.store.manifest import Manifest
from loadpart_common.store.model_store import MANIFEST, ModelStore, StoredModel
from loadpart_device.edges.connection import model_info

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadpart.v1 import offload_pb2
    from loadpart_device.edges.connection import Connection

log = logging.getLogger(__name__)

_DIGEST_LETTERS = 16  # of the digest, in a folder's name


def default_cache() -> Path:
    """Where fetched models are kept unless a setting says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loadpart" / "models"


class ModelCache:
    """A folder with a folder for each model and digest, of the same form as the server's store."""

    def __init__(self, folder: Path) -> None:
        self._store = ModelStore(folder)

    def find(self, name: str, digest: str | None = None) -> StoredModel | None:
        """A model that is there and whole; the one fetched last when no digest is given."""
        folders = [
            entry for entry in self._store.names() if entry.startswith(f"{name}-{(digest or '')[:_DIGEST_LETTERS]}")
        ]
        folders.sort(key=lambda entry: (self._store.folder / entry).stat().st_mtime, reverse=True)
        for folder in folders:
            try:
                stored = self._store.open(folder)
            except OffloadError:  # damaged: as good as not there
                continue
            if stored.manifest.name == name and digest in (None, stored.manifest.digest):
                return stored
        return None

    def fetch(self, connection: Connection, name: str, on_progress: Callable[[int, int], None]) -> StoredModel:
        """Fetches a model from the server.

        Args:
            connection: To the server.
            name: Name of the model.
            on_progress: Called with the bytes that have come and the bytes of all.

        Raises:
            ModelNotFoundError: The server has none of that name.
            ModelError: What came is not what its manifest says.
            OffloadError: The server could not be reached.
        """
        pieces = connection.get_model(name)
        first = next(pieces, None)
        if first is None or first.WhichOneof("piece") != "manifest":
            raise ModelError(f"{connection.endpoint}: expected the manifest of model {name!r} first")
        manifest = Manifest.from_bytes(first.manifest, f"{connection.endpoint}, model {name!r}")
        folder = f"{name}-{manifest.digest[:_DIGEST_LETTERS]}"
        digest, received = hashlib.sha256(), 0
        with self._store.adding(folder, manifest.format) as path:
            with path.open("wb") as file:
                for piece in pieces:
                    file.write(piece.chunk)
                    digest.update(piece.chunk)
                    received += len(piece.chunk)
                    on_progress(received, manifest.file_bytes)
            if digest.hexdigest() != manifest.digest:
                raise ModelError(
                    f"model {name!r} from {connection.endpoint}: expected digest {manifest.digest[:12]}..., "
                    f"got {digest.hexdigest()[:12]}... ({received} of {manifest.file_bytes} bytes)"
                )
        write_atomically(self._store.folder / folder / MANIFEST, manifest.to_bytes())
        return self._store.open(folder)

    def find_or_raise(self, name: str, why: OffloadError) -> StoredModel:
        """The model as it was last fetched, for when the server cannot be reached.

        Raises:
            ModelNotFoundError: It was never fetched; the message says why it cannot be now.
        """
        stored = self.find(name)
        if stored is None:
            raise ModelNotFoundError(f"model {name!r} is not cached, and the server cannot be asked: {why}") from why
        return stored


class FoundModel(NamedTuple):
    """A model, what the server says of it, and (when it says nothing) why not."""

    stored: StoredModel
    info: offload_pb2.ModelInfo | None
    why_not: ServerError | None


def find_model(
    connections: Sequence[Connection],
    name: str,
    folder: Path,
    timeout_seconds: float,
    on_progress: Callable[[int, int], None],
) -> FoundModel:
    """The model that the first server to answer serves, fetched unless it is cached; without a server the cached one.

    Args:
        connections: To the servers; at least one.
        name: Name of the model.
        folder: Folder of fetched models.
        timeout_seconds: How long to wait for each server.
        on_progress: Called with the bytes that have come and those of all.

    Raises:
        ModelNotFoundError: The server does not serve it; or none can be reached, and the model is not cached.
        ModelError: What came is not what its manifest says.
        AccessError: The server does not let this device in.
    """
    models = ModelCache(folder)
    why_not: ServerError | None = None
    for connection in connections:
        try:
            info = model_info(connection.list_models(timeout_seconds), name, connection.endpoint)
            stored = models.find(name, info.digest) or models.fetch(connection, name, on_progress)
            return FoundModel(stored, info, None)
        except ServerError as error:
            log.warning("the server at %s cannot be reached: %s", connection.endpoint, error)
            why_not = error
    assert why_not is not None
    return FoundModel(models.find_or_raise(name, why_not), None, why_not)
