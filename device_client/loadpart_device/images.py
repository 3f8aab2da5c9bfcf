"""Image files as the networks take them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from loadpart_common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from loadpart_common.tensors import Array, TensorSpec

_RESIZE_SHARE = 256 / 224
"""The shorter side is scaled to the network's size times this, and the middle is cut out: ImageNet's usual way."""


_SMALLEST_CROP = 0.5
"""Of a picture's width and height."""


def load_images(paths: Sequence[Path], spec: TensorSpec) -> Array:
    """Reads image files as a batch.

    Args:
        paths: The files, of any format that Pillow reads.
        spec: The network's input: uint8 of shape (N, height, width, 3).

    Returns:
        A uint8 array of shape (number of files, height, width, 3).

    Raises:
        InputError: A file is missing or no image, or the network does not take images.
    """
    if spec.dtype != "uint8" or len(spec.shape) != 4 or spec.shape[3] != 3:
        raise InputError(f"the model takes {spec}, not images: expected uint8[N, height, width, 3]")
    return np.stack([_load(path, spec.shape[1], spec.shape[2]) for path in paths])


def load_crops(path: Path, spec: TensorSpec, number: int) -> Iterator[Array]:
    """An image file as a batch of one, and then random parts of it, so that one picture stands for many.

    Each part has a quarter of the picture's area or more; the same file gives the same parts.

    Args:
        path: The file.
        spec: The network's input, as for `load_images`.
        number: How many batches to give.

    Raises:
        InputError: See `load_images`.
    """
    yield load_images([path], spec)
    image = _read(path)
    rng = random.Random(f"{image.size} {number}")
    _, height, width, _ = spec.shape
    for _ in range(number - 1):
        share = rng.uniform(_SMALLEST_CROP, 1.0)
        size = round(image.width * share), round(image.height * share)
        left, top = rng.randint(0, image.width - size[0]), rng.randint(0, image.height - size[1])
        part = image.crop((left, top, left + size[0], top + size[1]))
        yield np.asarray(ImageOps.fit(part, (width, height), Image.Resampling.BILINEAR), np.uint8)[None]


def _load(path: Path, height: int, width: int) -> Array:
    image = _read(path)
    scaled = ImageOps.fit(
        image, (round(width * _RESIZE_SHARE), round(height * _RESIZE_SHARE)), Image.Resampling.BILINEAR
    )
    left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
    return np.asarray(scaled.crop((left, top, left + width, top + height)), np.uint8)


def _read(path: Path) -> Image.Image:
    """A picture, the right way up."""
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"no image file at {path}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image that can be read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # damaged in one way or another
        raise InputError(f"{path} cannot be decoded: {error}") from error
