"""Builds a network of the zoo and writes it as a MindIR file."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart_common.engines.mindspore.preparation import prepare_import
from loadpart_common.engines.mindspore.zoo.catalog import NETWORKS
from loadpart_common.errors import ModelError, ModelNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = "mindir"
"""The model format in which networks are written."""


def export(name: str, path: Path, *, seed: int = 0, checkpoint: Path | None = None) -> None:
    """Writes a network to `path`, which ends in `.mindir`.

    Args:
        name: Name in `NETWORKS`.
        path: The file to write.
        seed: Seed of the weights, when no checkpoint is given.
        checkpoint: A MindSpore `.ckpt` file that has every weight of the network.

    Raises:
        ModelNotFoundError: There is no network of that name, or no such checkpoint.
        ModelError: The checkpoint does not fit the network.
    """
    network = build(name)
    if checkpoint is None:
        _seed_weights(network, seed)
    else:
        _load_checkpoint(network, checkpoint)
    info = NETWORKS[name]
    _write(network, path, info.image_size, info.mean, info.deviation)


def export_synthetic(seed: int, path: Path) -> None:
    """Writes the random network of a seed to `path`, which ends in `.mindir`; its weights mean nothing."""
    prepare_import()
    from loadpart_common.engines.mindspore.zoo.synthetic import synthetic

    network, image_size = synthetic(seed)
    _write(network, path, image_size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def build(name: str) -> Any:
    """The MindSpore cell of a network, which takes normalised float32 `N,3,H,W`.

    Raises:
        ModelNotFoundError: There is no network of that name.
    """
    info = NETWORKS.get(name)
    if info is None:
        raise ModelNotFoundError(f"no network {name!r} in the zoo: expected one of {', '.join(NETWORKS)}")
    prepare_import()
    return getattr(importlib.import_module(f"loadpart_common.engines.mindspore.zoo.{info.module}"), info.factory)()


def _write(network: Any, path: Path, image_size: int, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
    import mindspore

    cell = _normalised(network, mean, deviation)
    cell.set_train(False)
    image = mindspore.Tensor(np.zeros((1, image_size, image_size, 3), np.uint8))
    mindspore.export(cell, image, file_name=str(path), file_format="MINDIR")


def _normalised(network: Any, mean: tuple[float, ...], deviation: tuple[float, ...]) -> Any:
    """A cell that takes uint8 `N,H,W,3` images and normalises them first.

    The normalisation is part of the graph, so that a device may send the uint8 image: a quarter of its float32 bytes.
    """
    import mindspore
    from mindspore import nn, ops

    class Normalised(nn.Cell):  # type: ignore[misc]  # MindSpore has no types
        def __init__(self) -> None:
            super().__init__(auto_prefix=False)
            self.mean = mindspore.Tensor(np.array(mean, np.float32).reshape(1, 1, 1, 3))
            self.deviation = mindspore.Tensor(np.array(deviation, np.float32).reshape(1, 1, 1, 3))
            self.network = network

        def construct(self, image):  # type: ignore[no-untyped-def]
            x = (ops.cast(image, mindspore.float32) - self.mean) / self.deviation
            return self.network(ops.transpose(x, (0, 3, 1, 2)))

    return Normalised()


def _seed_weights(network: Any, seed: int) -> None:
    """Draws weights as He et al. 2015 do: normal, with variance 2 / fan-in; biases stay zero.

    They are drawn by numpy, so that a seed gives the same weights with every release of MindSpore.
    """
    import mindspore

    for index, parameter in enumerate(network.get_parameters()):
        if parameter.ndim > 1:
            deviation = math.sqrt(2 / math.prod(parameter.shape[1:]))
            values = np.random.default_rng([seed, index]).standard_normal(parameter.shape, np.float32)
            parameter.set_data(mindspore.Tensor(values * np.float32(deviation)))
        elif parameter.name.endswith(".bias"):
            parameter.set_data(mindspore.Tensor(np.zeros(parameter.shape, np.float32)))


def _load_checkpoint(network: Any, checkpoint: Path) -> None:
    import mindspore

    if not checkpoint.is_file():
        raise ModelNotFoundError(f"no checkpoint at {checkpoint}")
    try:
        weights = mindspore.load_checkpoint(str(checkpoint))
        missing, _ = mindspore.load_param_into_net(network, weights, strict_load=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(f"checkpoint {checkpoint} does not fit the network: {error}") from error
    if missing:
        raise ModelError(f"checkpoint {checkpoint} lacks {len(missing)} weights, the first of them {missing[0]!r}")
