"""The model store: a folder with a folder for each model, which holds one model file and its manifest.

The device's cache has the same form.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loadpart_common.errors import ModelError, ModelNotFoundError, OffloadError
from loadpart_common.files import file_state, read_regular, write_atomically
from loadpart_common.formats.registry import FORMATS, format_of
from loadpart_common.scratch import ScratchFolder
from loadpart_common.store.manifest import MOST_BYTES, Manifest, outdated_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from loadpart_common.files import FileState
    from loadpart_common.formats.base import OpenModel
    from loadpart_common.graph import Graph

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class StoredModel:
    """A model in a store.

    Attributes:
        path: Its file.
        manifest: What lies beside it.
        graph: The network, read from the file.
        state: State of the file when it was read.
    """

    path: Path
    manifest: Manifest
    graph: Graph
    state: FileState

    @property
    def is_changed(self) -> bool:
        """Whether another file lies at the path by now, or none, or the file was written to."""
        return file_state(self.path) != self.state


class ModelStore:
    """A folder of models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> tuple[str, ...]:
        """Names of the models, sorted; the files are not checked before a model is opened."""
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(entry.name for entry in self.folder.iterdir() if self._model_files(entry)))

    def open(self, name: str) -> StoredModel:
        """Opens a model: reads its file once to check the digest; a missing or outdated manifest is made from the file.

        Raises:
            ModelNotFoundError: There is no such model; the message lists those that there are.
            ModelError: Its file or its manifest is damaged or cannot be read, or the network cannot be cut.
        """
        files = self._model_files(self.folder / name) if _NAME.fullmatch(name) else []
        if not files:
            known = ", ".join(self.names()) or "none"
            raise ModelNotFoundError(f"no model {name!r} in {self.folder}: expected one of: {known}")
        if len(files) > 1:
            raise ModelError(f"{files[0][0].parent} holds {len(files)} model files: expected one")
        (path, model_format) = files[0]
        with _opened(path, model_format) as (model, graph):
            digest = model.digest()
            manifest, labels = _read_manifest(path.with_name(MANIFEST))
            if manifest is None or manifest.digest != digest:
                manifest = Manifest(name, model_format, digest, model.nbytes, labels)
                with contextlib.suppress(OSError):  # a read-only store can still be served
                    write_atomically(path.with_name(MANIFEST), manifest.to_bytes())
        return StoredModel(path, manifest, graph, model.identity)

    def set_labels(self, name: str, labels: tuple[str, ...]) -> None:
        """Sets the names of a model's classes.

        Raises:
            ModelNotFoundError: There is no such model.
            ModelError: The model is damaged.
        """
        self.describe(name, name, labels)

    def describe(self, folder: str, name: str, labels: tuple[str, ...]) -> None:
        """Sets name and labels of a model, whose folder may have another name.

        Raises:
            ModelNotFoundError: There is no such model.
            ModelError: The model is damaged.
            OSError: The manifest cannot be written.
        """
        stored = self.open(folder)
        manifest = replace(stored.manifest, name=name, labels=labels)
        write_atomically(stored.path.with_name(MANIFEST), manifest.to_bytes())

    @contextlib.contextmanager
    def adding(self, name: str, model_format: str) -> Iterator[Path]:
        """A path to write a model file to; it becomes the model of that name when the block ends without an error.

        Raises:
            ModelError: The name is not valid as the name of a folder.
            SettingsError: There is no such format.
        """
        if not _NAME.fullmatch(name):
            raise ModelError(f"expected a model name of letters, digits, '.', '_' and '-', got {name!r}")
        self.folder.mkdir(parents=True, exist_ok=True)
        with ScratchFolder(".adding-", self.folder) as scratch:  # goes with the next one if this process is killed
            path = scratch.path / f"model{FORMATS[model_format].suffix}"
            yield path
            path.chmod(0o644)
            target = self.folder / name
            target.mkdir(exist_ok=True)
            for old, _ in self._model_files(target):
                if old.name != path.name:
                    old.unlink()
            path.replace(target / path.name)

    @contextlib.contextmanager
    def receiving(
        self, name: str, model_format: str, *, digest: str, nbytes: int, what: str
    ) -> Iterator[Callable[[bytes], None]]:
        """A function that takes the pieces of a model file; it becomes the model of that name when the block ends.

        Args:
            name: Name of the model.
            model_format: Format of the file.
            digest: SHA-256 that the file must have, in hexadecimal.
            nbytes: Bytes that it may have.
            what: What errors call it.

        Raises:
            ModelError: It is not that file, or cannot be a model; nothing is kept. The function raises it, too.
        """
        received, hashed = 0, hashlib.sha256()
        with self.adding(name, model_format) as path:
            if (free := shutil.disk_usage(path.parent).free) < nbytes:
                raise ModelError(f"{what} has {nbytes} bytes, but {free} are free in {path.parent}")
            with path.open("wb") as file:

                def take(piece: bytes) -> None:
                    nonlocal received
                    received += len(piece)
                    if received > nbytes:
                        raise ModelError(f"{what}: expected {nbytes} bytes, got more")
                    file.write(piece)
                    hashed.update(piece)

                yield take
            if hashed.hexdigest() != digest:
                raise ModelError(
                    f"{what}: expected digest {digest[:12]}..., got {hashed.hexdigest()[:12]}... "
                    f"({received} of {nbytes} bytes)"
                )
            check_model(path, model_format)

    def _model_files(self, folder: Path) -> list[tuple[Path, str]]:
        """The model files in a folder, and their formats; a folder that is a link out of the store has none."""
        try:
            if not folder.is_dir() or not folder.resolve().is_relative_to(self.folder.resolve()):
                return []
            found = [(path, format_of(path)) for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        except OSError:  # a folder that this user may not look into
            return []
        return [(path, known.name) for path, known in found if known is not None]


def check_model(path: Path, model_format: str) -> None:
    """Refuses a file that cannot be a model in a store.

    Raises:
        ModelError: It is damaged, of another format, or the network cannot be cut.
    """
    with _opened(path, model_format):
        pass


@contextlib.contextmanager
def _opened(path: Path, model_format: str) -> Iterator[tuple[OpenModel, Graph]]:
    """A model file and the network in it."""
    with contextlib.ExitStack() as stack:
        try:
            model = stack.enter_context(contextlib.closing(FORMATS[model_format].open(path)))
            graph = model.graph
        except OffloadError:
            raise
        except Exception as error:  # whatever a format throws over what strangers wrote
            raise ModelError(f"{path} cannot be read as a model of the format {model_format}: {error!r}") from error
        yield model, graph


def _read_manifest(path: Path) -> tuple[Manifest | None, tuple[str, ...]]:
    """The manifest at a path, if there is a current one, and the labels in it or in an outdated one."""
    try:
        data = read_regular(path, MOST_BYTES)
    except FileNotFoundError:
        return None, ()
    except OSError as error:
        raise ModelError(f"cannot read the manifest: {error}") from error
    labels = outdated_labels(data)
    if labels is not None:
        return None, labels
    manifest = Manifest.from_bytes(data, path)
    return manifest, manifest.labels
