"""Builds a network of the zoo and writes it as a MindIR file."""

from __future__ import annotations

import importlib
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart_common.engines.mindspore.preparation import prepare_import
from loadpart_common.engines.mindspore.zoo.catalog import LABELS, NETWORKS
from loadpart_common.engines.mindspore.zoo.trained import file_of, labels_of, weights_of
from loadpart_common.engines.synthetic.drawing import draw
from loadpart_common.errors import ModelError, ModelNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from loadpart_common.tensors import Array

log = logging.getLogger(__name__)

FORMAT = "mindir"
"""The model format in which networks are written."""


def export(name: str, path: Path, *, seed: int | None = None, checkpoint: Path | None = None) -> tuple[str, ...]:
    """Writes a network to `path`, which ends in `.mindir`.

    Args:
        name: Name in `NETWORKS`.
        path: The file to write.
        seed: Seed of random weights. None when they are to be the trained ones of a network that has such, and those
            of seed 0 where it has none or their package is not installed.
        checkpoint: A MindSpore `.ckpt` file that has every weight of the network.

    Returns:
        The names of the classes in the order of the scores; none when the weights are not the trained ones.

    Raises:
        ModelNotFoundError: There is no network of that name, or no such checkpoint.
        ModelError: The checkpoint does not fit the network, or the file with the trained weights is damaged.
    """
    network = build(name)
    info = NETWORKS[name]
    trained = None if seed is not None or checkpoint is not None else _trained_weights(name)
    if checkpoint is not None:
        _load_checkpoint(network, checkpoint)
    elif trained is not None:
        _set_weights(network, trained)
    else:
        _seed_weights(network, seed or 0)
    _write(network, path, info.image_size, info.mean, info.deviation)
    labels = file_of(LABELS) if trained is not None else None
    return () if labels is None else labels_of(labels)


def export_synthetic(seed: int, path: Path) -> None:
    """Writes the random network of a seed to `path`, which ends in `.mindir`; its weights mean nothing."""
    prepare_import()
    from loadpart_common.engines.mindspore.zoo.synthetic import cell_of

    drawn = draw(seed)
    _write(cell_of(drawn.pieces), path, drawn.size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


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


def _trained_weights(name: str) -> dict[str, Array] | None:
    """The trained weights of a network, if it has any and their package is installed."""
    place = NETWORKS[name].weights
    if place is None:
        return None
    path = file_of(place)
    if path is None:
        log.warning("the weights of %s are random: the package %s has trained ones", name, place.package)
        return None
    return weights_of(path)


def _set_weights(network: Any, weights: dict[str, Array]) -> None:
    import mindspore

    tensors = {name: mindspore.Parameter(mindspore.Tensor(array)) for name, array in weights.items()}
    missing, _ = mindspore.load_param_into_net(network, tensors, strict_load=True)
    if missing:
        raise ModelError(f"the trained weights lack {len(missing)}, the first of them {missing[0]!r}")


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
