"""Model files on a node of the cluster: each comes once, by digest, and is checked before it is used."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from loadpart_common.errors import ModelError, OffloadError
from loadpart_common.files import cache_folder
from loadpart_common.store.model_store import ModelStore, StoredModel

if TYPE_CHECKING:
    from collections.abc import Callable

_DIGEST_LETTERS = 32  # of the digest, in a folder's name


class ModelFile(NamedTuple):
    """What a node has to know of a model.

    Attributes:
        digest: SHA-256 of its file, in hexadecimal.
        format: Format of the file.
        nbytes: Its size.
        engine: Name of the engine that runs it.
        precision: How the engine computes.
        provider: What the engine computes on.
    """

    digest: str
    format: str
    nbytes: int
    engine: str
    precision: str
    provider: str


class NodeStore:
    """A model store whose models are called by their digests, and whose files come in pieces."""

    def __init__(self) -> None:
        self._store = ModelStore(cache_folder("cluster"))
        self._incoming: dict[str, tuple[contextlib.ExitStack, Callable[[bytes], None]]] = {}

    def find(self, digest: str) -> StoredModel | None:
        """A model that is there and whole; what was coming of it and came to no end is dropped."""
        if digest in self._incoming:
            stack, _ = self._incoming.pop(digest)
            with contextlib.suppress(OffloadError):
                stack.close()
        try:
            stored = self._store.open(digest[:_DIGEST_LETTERS])
        except OffloadError:  # not there, or damaged, which is as good
            return None
        return stored if stored.manifest.digest == digest else None

    def receive(self, model: ModelFile, piece: bytes) -> None:
        """Takes in the next piece of a file; an empty one is the end.

        Raises:
            ModelError: It is not the file that was announced, or cannot be kept; nothing of it is kept.
        """
        try:
            stack, take = self._incoming.pop(model.digest, None) or (contextlib.ExitStack(), None)
            with stack:  # ends the taking in, unless more is to come
                if take is None:
                    what, name = f"model {model.digest[:12]}...", model.digest[:_DIGEST_LETTERS]
                    take = stack.enter_context(
                        self._store.receiving(name, model.format, digest=model.digest, nbytes=model.nbytes, what=what)
                    )
                if piece:
                    take(piece)
                    self._incoming[model.digest] = stack.pop_all(), take
        except OSError as error:
            raise ModelError(f"a model cannot be kept on the node: {error}") from error
