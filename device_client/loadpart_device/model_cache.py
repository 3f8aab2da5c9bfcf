"""Fetches models from the server and keeps them, by digest, in a folder of the device."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import re
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from loadpart_common.errors import ModelError, ModelNotFoundError, OffloadError, ServerError, UnavailableError
from loadpart_common.files import MOST_MODEL_BYTES, cache_folder
from loadpart_common.formats.registry import FORMATS
from loadpart_common.store.manifest import Manifest
from loadpart_common.store.model_store import ModelStore, StoredModel
from loadpart_device.edges.connection import model_info

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from loadpart.v1 import offload_pb2
    from loadpart_common.wire.endpoint import Endpoint
    from loadpart_device.edges.connection import Connection

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_DIGEST_LETTERS = 16  # of the digest, in a folder's name
_GRACE_SECONDS = 0.25
"""How long servers that were named earlier are waited for once one has answered: the order says whose file counts."""

_PATIENCE_SECONDS = 30.0  # in which hardly anything of a model comes, after which the server counts as stalled


def default_cache() -> Path:
    """Where fetched models are kept unless a setting says otherwise."""
    return cache_folder("models")


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

    def fetch(
        self, connection: Connection, name: str, info: offload_pb2.ModelInfo, on_progress: Callable[[int, int], None]
    ) -> StoredModel:
        """Fetches a model from the server.

        Only the file is believed, and only when it has the digest that the server claims: the network is read from it.

        Args:
            connection: To the server.
            name: Name of the model.
            info: What the server says of it.
            on_progress: Called with the bytes that have come and the bytes of all.

        Raises:
            ModelNotFoundError: The server has none of that name.
            ModelError: What came is not what the server said, or there is no room for it.
            OffloadError: The server could not be reached, or stopped sending.
        """
        pieces = connection.get_model(name).pieces(_PATIENCE_SECONDS)
        manifest = _manifest(pieces, name, info, connection.endpoint)
        folder = f"{name}-{manifest.digest[:_DIGEST_LETTERS]}"
        what, received = f"model {name!r} from {connection.endpoint}", 0
        try:
            with self._store.receiving(
                folder, manifest.format, digest=manifest.digest, nbytes=manifest.file_bytes, what=what
            ) as take:
                for piece in pieces:
                    if not piece.chunk:
                        raise ModelError(f"{what}: expected {manifest.file_bytes} bytes, got an empty piece")
                    take(piece.chunk)
                    received += len(piece.chunk)
                    on_progress(received, manifest.file_bytes)
            self._store.describe(folder, name, manifest.labels)
        except OSError as error:
            raise ModelError(f"model {name!r} cannot be kept in {self._store.folder}: {error}") from error
        return self._store.open(folder)

    def with_labels(self, stored: StoredModel, connection: Connection, info: offload_pb2.ModelInfo) -> StoredModel:
        """A model with the labels that a server has for it, which the digest of the file does not cover.

        Raises:
            OffloadError: The server could not be reached.
        """
        manifest = stored.manifest
        if info.labels_digest == manifest.labels_digest:
            return stored
        with contextlib.closing(connection.get_model(manifest.name).pieces(_PATIENCE_SECONDS)) as pieces:
            labels = _manifest(pieces, manifest.name, info, connection.endpoint).labels
        with contextlib.suppress(OSError):  # a cache that cannot be written to can still be read
            self._store.describe(stored.path.parent.name, manifest.name, labels)
        return replace(stored, manifest=replace(manifest, labels=labels))

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
    """A model, and what servers say of it.

    Attributes:
        stored: The model.
        infos: What servers say, as far as it was needed, by the names of their endpoints.
        errors: Why others do not serve it, by the names of the endpoints.
    """

    stored: StoredModel
    infos: dict[str, offload_pb2.ModelInfo]
    errors: dict[str, OffloadError]


def find_model(
    connections: Sequence[Connection],
    name: str,
    folder: Path,
    timeout_seconds: float,
    on_progress: Callable[[int, int], None],
) -> FoundModel:
    """The model that servers serve, fetched unless it is cached; without a server the cached one.

    All servers are asked at once. Where they hold different files, that of the server counts that was named first
    among those that answer at about the same time.

    Args:
        connections: To the servers.
        name: Name of the model.
        folder: Folder of fetched models.
        timeout_seconds: How long to wait for the servers.
        on_progress: Called with the bytes that have come and those of all.

    Raises:
        ModelNotFoundError: No server serves it; or none can be reached, and the model is not cached.
        ModelError: What came is not what its manifest says.
        AccessError: No server lets this device in.
    """
    models = ModelCache(folder)
    infos: dict[str, offload_pb2.ModelInfo] = {}
    errors: dict[str, OffloadError] = {}
    for connection, answer in _ask(connections, name, timeout_seconds):
        server = str(connection.endpoint)
        try:
            if isinstance(answer, OffloadError):
                raise answer
            infos[server] = answer
            stored = models.find(name, answer.digest)
            if stored is None:
                stored = models.fetch(connection, name, answer, on_progress)
            return FoundModel(models.with_labels(stored, connection, answer), infos, errors)
        except OffloadError as error:
            errors[server] = error
            log.warning("model %r is not to be had from the server at %s: %s", name, server, error)
    unreached = [error for error in errors.values() if isinstance(error, ServerError)]
    if errors and not unreached:
        raise next(iter(errors.values()))
    why_not = unreached[0] if unreached else UnavailableError("no name leads to a server")
    return FoundModel(models.find_or_raise(name, why_not), infos, errors)


def _ask(
    connections: Sequence[Connection], name: str, timeout_seconds: float
) -> Iterator[tuple[Connection, offload_pb2.ModelInfo | OffloadError]]:
    """Asks all servers for a model at once; gives what they say, the earliest named first among those as quick."""
    answers: queue.SimpleQueue[tuple[int, offload_pb2.ModelInfo | OffloadError]] = queue.SimpleQueue()

    def ask(place: int, connection: Connection) -> None:
        try:
            answers.put((place, model_info(connection.list_models(timeout_seconds), name, connection.endpoint)))
        except OffloadError as error:
            answers.put((place, error))
        except ValueError:  # another server has answered, and the channel has been closed since
            answers.put((place, UnavailableError("the connection was closed")))

    for place, connection in enumerate(connections):
        threading.Thread(target=ask, args=(place, connection), name="loadpart-find", daemon=True).start()
    awaited = set(range(len(connections)))
    there: dict[int, offload_pb2.ModelInfo] = {}
    until = math.inf  # when those that were named earlier are not waited for any more
    while awaited or there:
        if there and (min(there) < min(awaited, default=len(connections)) or time.monotonic() >= until):
            first = min(there)
            yield connections[first], there.pop(first)
            continue
        try:
            place, answer = answers.get(timeout=max(until - time.monotonic(), 0.0) if there else None)
        except queue.Empty:
            continue
        awaited.remove(place)
        if isinstance(answer, OffloadError):
            yield connections[place], answer
        else:
            there[place] = answer
            until = min(until, time.monotonic() + _GRACE_SECONDS)


def _manifest(
    pieces: Iterator[offload_pb2.GetModelResponse], name: str, info: offload_pb2.ModelInfo, endpoint: Endpoint
) -> Manifest:
    """The manifest that comes first, when it describes the model that the server has announced."""
    first = next(pieces, None)
    if first is None or first.WhichOneof("piece") != "manifest":
        raise ModelError(f"{endpoint}: expected the manifest of model {name!r} first")
    manifest = Manifest.from_bytes(first.manifest, f"what {endpoint} says of model {name!r}")
    if manifest.digest != info.digest or not _DIGEST.fullmatch(manifest.digest):
        raise ModelError(f"{endpoint}, model {name!r}: expected the digest {info.digest!r}, got {manifest.digest!r}")
    if not 0 < manifest.file_bytes <= MOST_MODEL_BYTES:
        raise ModelError(
            f"{endpoint}, model {name!r}: expected 1 to {MOST_MODEL_BYTES} bytes, got {manifest.file_bytes}"
        )
    if manifest.format not in FORMATS:
        raise ModelError(
            f"{endpoint}, model {name!r}: expected a format of {', '.join(FORMATS)}, got {manifest.format!r}"
        )
    return manifest
