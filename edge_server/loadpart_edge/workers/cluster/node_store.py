"""Model files on a node of the cluster: each comes once, by digest, and is checked before it is used."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

from loadpart_common.errors import ModelError, OffloadError
from loadpart_common.files import cache_folder
from loadpart_common.store.model_store import ModelStore, StoredModel, check_model

if TYPE_CHECKING:
    from pathlib import Path

_DIGEST_LETTERS = 32  # of the digest, in a folder's name


class NodeStore:
    """A model store whose models are called by their digests."""

    def __init__(self, folder: Path | None = None) -> None:
        self._store = ModelStore(folder or cache_folder("cluster"))

    def find(self, digest: str) -> StoredModel | None:
        """A model that is there and whole."""
        try:
            stored = self._store.open(digest[:_DIGEST_LETTERS])
        except OffloadError:  # not there, or damaged, which is as good
            return None
        return stored if stored.manifest.digest == digest else None

    def receive(self, digest: str, model_format: str) -> Incoming:
        """Begins to take in a file."""
        return Incoming(self._store, digest, model_format)


class Incoming:
    """A model file that comes in pieces."""

    def __init__(self, store: ModelStore, digest: str, model_format: str) -> None:
        self._digest, self._format = digest, model_format
        self._hash = hashlib.sha256()
        self._ending = contextlib.ExitStack()
        self._path = self._ending.enter_context(store.adding(digest[:_DIGEST_LETTERS], model_format))
        self._file = self._path.open("wb")

    def write(self, piece: bytes) -> None:
        """Adds a piece."""
        self._file.write(piece)
        self._hash.update(piece)

    def finish(self) -> None:
        """Puts the file into the store.

        Raises:
            ModelError: It is not the file that was announced; nothing is kept.
        """
        try:
            with self._ending:
                self._file.close()
                if self._hash.hexdigest() != self._digest:
                    raise ModelError(f"expected digest {self._digest[:12]}..., got {self._hash.hexdigest()[:12]}...")
                check_model(self._path, self._format)
        except OSError as error:
            raise ModelError(f"a model cannot be kept on the node: {error}") from error
