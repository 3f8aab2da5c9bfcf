"""Fetches models from the server and keeps them, by digest, in a folder of the device."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from loadpart_common.errors import ModelError, ModelNotFoundError, OffloadError, ServerError
from loadpart_common.store.manifest import Manifest
from loadpart_common.store.model_store import MANIFEST, ModelStore, StoredModel, write_atomically
from loadpart_device.edges.connection import model_info

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart.v1 import offload_pb2
    from loadpart_device.edges.connection import Server

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

    def fetch(self, server: Server, name: str, on_progress: Callable[[int, int], None]) -> StoredModel:
        """Fetches a model from the server.

        Args:
            server: The server.
            name: Name of the model.
            on_progress: Called with the bytes that have come and the bytes of all.

        Raises:
            ModelNotFoundError: The server has none of that name.
            ModelError: What came is not what its manifest says.
            OffloadError: The server could not be reached.
        """
        pieces = server.get_model(name)
        first = next(pieces, None)
        if first is None or first.WhichOneof("piece") != "manifest":
            raise ModelError(f"{server.target}: expected the manifest of model {name!r} first")
        manifest = Manifest.from_bytes(first.manifest, f"{server.target}, model {name!r}")
        folder = f"{name}-{manifest.digest[:_DIGEST_LETTERS]}"
        digest, received = hashlib.sha256(), 0
        with self._store.adding(folder) as path:
            with path.open("wb") as file:
                for piece in pieces:
                    file.write(piece.chunk)
                    digest.update(piece.chunk)
                    received += len(piece.chunk)
                    on_progress(received, manifest.file_bytes)
            if digest.hexdigest() != manifest.digest:
                raise ModelError(
                    f"model {name!r} from {server.target}: expected digest {manifest.digest[:12]}..., "
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
    server: Server, name: str, folder: Path, timeout_seconds: float, on_progress: Callable[[int, int], None]
) -> FoundModel:
    """The model that a server serves, fetched unless it is cached; when the server is not there, the cached one.

    Args:
        server: The server.
        name: Name of the model.
        folder: Folder of fetched models.
        timeout_seconds: How long to wait for the server.
        on_progress: Called with the bytes that have come and those of all.

    Raises:
        ModelNotFoundError: The server does not serve it; or it cannot be reached, and the model is not cached.
        ModelError: What came is not what its manifest says.
    """
    models = ModelCache(folder)
    try:
        info = model_info(server.list_models(timeout_seconds), name, server.target)
        return FoundModel(models.find(name, info.digest) or models.fetch(server, name, on_progress), info, None)
    except ServerError as error:
        log.warning("the server at %s cannot be reached: %s", server.target, error)
        return FoundModel(models.find_or_raise(name, error), None, error)
