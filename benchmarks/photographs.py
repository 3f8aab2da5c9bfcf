"""Photographs that packages ship, for the demo and the benchmarks."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

COFFEE = Path(str(importlib.resources.files("skimage.data"))) / "coffee.png"
"""A cup of espresso on a wooden table, 600 x 400."""


def labelled() -> dict[Path, int]:
    """Twenty photographs of ImageNet's kind, and the number of the class of each."""
    import importlib.util

    spec = importlib.util.find_spec("foolbox")  # importing it would take seconds
    assert spec is not None
    assert spec.origin is not None
    files = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    return {path: int(path.stem.split("_")[-1]) for path in files}
