"""Photographs that packages ship, for the demo and the benchmarks."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

COFFEE = Path(str(importlib.resources.files("skimage.data"))) / "coffee.png"
"""A cup of espresso on a wooden table, 600 x 400."""

_SCIKIT_IMAGE = (
    "astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png",
    "motorcycle_right.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip


def labelled() -> dict[Path, int]:
    """Twenty photographs of ImageNet's kind, and the number of the class of each."""
    import importlib.util

    spec = importlib.util.find_spec("foolbox")  # importing it would take seconds
    assert spec is not None
    assert spec.origin is not None
    files = sorted((Path(spec.origin).parent / "data").glob("imagenet_*.jpg"))
    return {path: int(path.stem.split("_")[-1]) for path in files}


def photographs() -> list[Path]:
    """Thirty photographs in colour: those with labels, and ten more."""
    import importlib.util

    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    portrait = Path(spec.origin).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    return [*labelled(), portrait, *(COFFEE.with_name(name) for name in _SCIKIT_IMAGE)]
