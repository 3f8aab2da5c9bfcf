"""Small networks in the toy format, which the tests of the daemon and the SDK use."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

N = -1


def chain(first: int, count: int, source: tuple[int, int]) -> list[list[Any]]:
    """Affine layers, one after another."""
    sources = [source, *((index, 0) for index in range(first, first + count - 1))]
    return [[f"affine{first + number}", "affine", [source]] for number, source in enumerate(sources)]


NETWORKS: dict[str, dict[str, Any]] = {
    # An image network with a branch: two tensors cross a cut between its arms.
    "tiny": {
        "inputs": [["image", "uint8", [N, 32, 32, 3]]],
        "layers": [
            *chain(0, 4, (-1, 0)),
            *chain(4, 2, (3, 0)),
            *chain(6, 2, (3, 0)),
            ["join", "concat", [[5, 0], [7, 0]]],
            *chain(9, 2, (8, 0)),
            ["classify", "dense", [[10, 0]]],
        ],
        "outputs": [[11, 0]],
    },
    # Two inputs and three outputs, one of them from the middle of the network.
    "two": {
        "inputs": [["a", "float32", [N, 6]], ["b", "float32", [N, 2]]],
        "layers": [
            ["first", "affine", [[-1, 0]]],
            ["second", "affine", [[-1, 1]]],
            ["join", "concat", [[0, 0], [1, 0]]],
            ["third", "affine", [[2, 0]]],
        ],
        "outputs": [[3, 0], [0, 0], [2, 0]],
    },
    # Takes only batches of two.
    "fixed": {
        "inputs": [["x", "float32", [2, 3, 4]]],
        "layers": chain(0, 3, (-1, 0)),
        "outputs": [[2, 0]],
    },
    # Layers 1 to 3 share memory.
    "in-place": {
        "inputs": [["x", "float32", [N, 8]]],
        "layers": chain(0, 6, (-1, 0)),
        "outputs": [[5, 0]],
        "barriers": [[1, 3, 2]],
    },
}

BROKEN = {**NETWORKS["tiny"], "layers": [["loop", "while", [[-1, 0]]]]}


def write(name: str, folder: Path, document: dict[str, Any] | None = None) -> Path:
    """Writes a network into a model store; returns the path of its file."""
    path = folder / name / f"{name}.toy"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"barriers": [], **(document or NETWORKS[name])}))
    return path


def write_store(folder: Path, names: Sequence[str] = tuple(NETWORKS)) -> Path:
    """Writes networks into a new model store."""
    for name in names:
        write(name, folder)
    return folder
