"""The model store: a folder with a folder a model, which holds one `.mindir` file and its manifest.

The device's cache has the same form.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loadpart_common.errors import ModelError, ModelNotFoundError
from loadpart_common.formats.mindir import ModelFile, Program
from loadpart_common.store.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class StoredModel:
    """A model in a store: its file and its manifest, which belong together."""

    path: Path
    manifest: Manifest


class ModelStore:
    """A folder of models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> tuple[str, ...]:
        """Names of the models, in order; whether they are sound shows when one is opened."""
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(entry.name for entry in self.folder.iterdir() if any(entry.glob("*.mindir"))))

    def open(self, name: str) -> StoredModel:
        """A model, its file read once to check the digest; a missing or outdated manifest is made from the file.

        Raises:
            ModelNotFoundError: There is no such model; the message lists those that there are.
            ModelError: Its file or its manifest is damaged, or it holds what cannot be cut.
        """
        files = sorted((self.folder / name).glob("*.mindir")) if _NAME.fullmatch(name) else []
        if not files:
            known = ", ".join(self.names()) or "none"
            raise ModelNotFoundError(f"no model {name!r} in {self.folder}: expected one of: {known}")
        if len(files) > 1:
            raise ModelError(f"{files[0].parent} holds {len(files)} .mindir files: expected one")
        path = files[0]
        with ModelFile(path) as file:
            digest = file.digest()
            manifest = self._read_manifest(path.with_name(MANIFEST))
            if manifest is None or manifest.digest != digest:
                labels = manifest.labels if manifest else ()
                manifest = Manifest(name, digest, file.nbytes, Program(file.structure).graph, labels)
                with contextlib.suppress(PermissionError):  # a read-only store still serves
                    write_atomically(path.with_name(MANIFEST), manifest.to_bytes())
        return StoredModel(path, manifest)

    def set_labels(self, name: str, labels: tuple[str, ...]) -> None:
        """Gives a model the names of its classes.

        Raises:
            ModelNotFoundError: There is no such model.
            ModelError: It is damaged.
        """
        stored = self.open(name)
        old = stored.manifest
        manifest = Manifest(old.name, old.digest, old.file_bytes, old.graph, labels)
        write_atomically(stored.path.with_name(MANIFEST), manifest.to_bytes())

    @contextlib.contextmanager
    def adding(self, name: str) -> Iterator[Path]:
        """A path to write a model file to; it becomes the model of that name when the block ends without an error.

        Raises:
            ModelError: The name cannot be that of a folder.
        """
        if not _NAME.fullmatch(name):
            raise ModelError(f"expected a model name of letters, digits, '.', '_' and '-', got {name!r}")
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".adding-") as folder:
            path = Path(folder) / "model.mindir"
            yield path
            path.chmod(0o644)
            target = self.folder / name
            target.mkdir(exist_ok=True)
            for old in target.glob("*.mindir"):
                if old.name != path.name:
                    old.unlink()
            path.replace(target / path.name)

    @staticmethod
    def _read_manifest(path: Path) -> Manifest | None:
        try:
            return Manifest.from_bytes(path.read_bytes(), path)
        except FileNotFoundError:
            return None


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one, never a part."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
