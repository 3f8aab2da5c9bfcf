"""Image files as the networks take them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loadpart_common.tensors import Array, TensorSpec

_RESIZE_SHARE = 256 / 224
"""The shorter side is scaled to the network's size times this, and the middle is cut out: ImageNet's usual way."""


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


def _load(path: Path, height: int, width: int) -> Array:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError as error:
        raise InputError(f"no image file at {path}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image that can be read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # damaged in one way or another
        raise InputError(f"{path} cannot be decoded: {error}") from error
    scaled = ImageOps.fit(
        image, (round(width * _RESIZE_SHARE), round(height * _RESIZE_SHARE)), Image.Resampling.BILINEAR
    )
    left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
    return np.asarray(scaled.crop((left, top, left + width, top + height)), np.uint8)
