"""Trained weights, and names of their classes, from packages that ship them."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING

from loadpart_common.engines.mindspore.zoo.torch_file import read_tensors

if TYPE_CHECKING:
    from loadpart_common.engines.mindspore.zoo.catalog import PackageFile
    from loadpart_common.tensors import Array

_NORMALISATION = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
"""What PyTorch calls the weights of a batch normalisation, and what MindSpore does."""

_COUNTERS = "num_batches_tracked"


def file_of(place: PackageFile) -> Path | None:
    """A file that a package ships; None when the package is not installed."""
    try:
        path = Path(str(importlib.metadata.distribution(place.package).locate_file(place.path)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return path if path.is_file() else None


def weights_of(path: Path) -> dict[str, Array]:
    """The weights in a file of PyTorch's, by the names that MindSpore gives them.

    Raises:
        ModelError: The file cannot be read.
    """
    return {_renamed(name): array for name, array in read_tensors(path).items() if not name.endswith(_COUNTERS)}


def _renamed(name: str) -> str:
    *parts, last = (part.removeprefix("_") for part in name.split("."))
    return ".".join((*parts, _NORMALISATION[last] if parts[-1].startswith("bn") else last))


def labels_of(path: Path) -> tuple[str, ...]:
    """The names of classes in a JSON file that lists them in the order of the scores."""
    return tuple(map(str, json.loads(path.read_text(encoding="utf-8"))))
