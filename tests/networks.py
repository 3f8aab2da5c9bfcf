"""Small networks that the tests export themselves, with features that the zoo's networks lack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart_common.engines.mindspore.preparation import prepare_import

if TYPE_CHECKING:
    from pathlib import Path

prepare_import()

import mindspore  # noqa: E402
from mindspore import nn, ops  # noqa: E402


class Tiny(nn.Cell):  # type: ignore[misc]
    """An image network with a branch: two tensors cross a cut between its arms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, has_bias=True)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(8, 8, 3)
        self.classify = nn.Dense(16, 10)

    def construct(self, image):
        x = ops.transpose(ops.cast(image, mindspore.float32) / 255.0, (0, 3, 1, 2))
        x = ops.relu(self.norm(self.stem(x)))
        x = ops.concat((ops.relu(self.left(x)), ops.relu(self.right(x))), axis=1)
        return self.classify(ops.mean(x, (2, 3)))


class TwoInTwoOut(nn.Cell):  # type: ignore[misc]
    """Two inputs, three outputs (one from the middle of the network), and an operator that returns a tuple."""

    def construct(self, a, b):
        x = ops.relu(a)
        first, second, third = ops.split(x, 2, axis=1)
        return ops.concat((first + ops.sigmoid(b), second), 1), third * 2.0, x


class SplitOutput(nn.Cell):  # type: ignore[misc]
    """Returns the tuple of an operator unchanged."""

    def construct(self, a):
        return ops.split(ops.relu(a), 2, axis=1)


class InPlace(nn.Cell):  # type: ignore[misc]
    """Adds in place, so that two layers share memory."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)

    def construct(self, a):
        x = self.stem(a)
        x += ops.relu(x)
        return ops.sigmoid(x) * 2.0


class Padded(nn.Cell):  # type: ignore[misc]
    """Pads an image, by another number of rows and columns on each side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.pad = nn.Pad(((0, 0), (0, 0), (1, 2), (3, 0)))
        self.pool = nn.MaxPool2d(3, stride=2)

    def construct(self, a):
        return self.pool(self.pad(self.stem(a)))


class ControlFlow(nn.Cell):  # type: ignore[misc]
    """Has a branch of control flow that depends on its input."""

    def construct(self, a):
        if a.sum() > 0:
            return ops.relu(a)
        return ops.sigmoid(a) * 2.0


class Counting(nn.Cell):  # type: ignore[misc]
    """Keeps a state, by writing to a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.count = mindspore.Parameter(mindspore.Tensor(np.zeros((1, 4), np.float32)), name="count")

    def construct(self, a):
        ops.assign_add(self.count, a)
        return ops.relu(a) + self.count


class FixedReshape(nn.Cell):  # type: ignore[misc]
    """Has its batch size written into a reshape."""

    def construct(self, a):
        return ops.relu(ops.reshape(ops.relu(a), (2, 12)))


class Sliced(nn.Cell):  # type: ignore[misc]
    """Slices channels, which MindIR writes with the batch size in the slice."""

    def construct(self, a):
        return ops.relu(a)[:, :2] * 3.0


def floats(*shape: int) -> mindspore.Tensor:
    return mindspore.Tensor(np.zeros(shape, np.float32))


def export(cell: Any, path: Path, *inputs: Any) -> Path:
    """Writes a cell, with weights drawn by a fixed seed, as `path`."""
    cell.set_train(False)
    for index, parameter in enumerate(cell.get_parameters()):
        values = np.random.default_rng(index).standard_normal(parameter.shape).astype(np.float32)
        if parameter.name.endswith("moving_variance"):
            values = np.abs(values) + np.float32(1.0)
        parameter.set_data(mindspore.Tensor(values * 0.3))
    path.parent.mkdir(parents=True, exist_ok=True)
    mindspore.export(cell, *inputs, file_name=str(path), file_format="MINDIR")
    return path


def image(size: int = 32) -> mindspore.Tensor:
    return mindspore.Tensor(np.zeros((1, size, size, 3), np.uint8))


EXPORTS = {
    "tiny": lambda path: export(Tiny(), path, image()),
    "two": lambda path: export(TwoInTwoOut(), path, floats(1, 6, 4, 4), floats(1, 2, 4, 4)),
    "tuple": lambda path: export(SplitOutput(), path, floats(1, 6, 4, 4)),
    "in-place": lambda path: export(InPlace(), path, floats(1, 3, 8, 8)),
    "padded": lambda path: export(Padded(), path, floats(1, 3, 8, 8)),
    "fixed": lambda path: export(FixedReshape(), path, floats(2, 3, 4)),
    "sliced": lambda path: export(Sliced(), path, floats(1, 4, 4, 4)),
    "open-batch": lambda path: export(
        nn.SequentialCell(nn.Flatten(), nn.Dense(48, 10)),
        path,
        mindspore.Tensor(shape=[None, 3, 4, 4], dtype=mindspore.float32),
    ),
    "control-flow": lambda path: export(ControlFlow(), path, floats(1, 3, 4, 4)),
    "counting": lambda path: export(Counting(), path, floats(1, 4)),
    "open-height": lambda path: export(
        nn.ReLU(), path, mindspore.Tensor(shape=[1, 3, None, 4], dtype=mindspore.float32)
    ),
}
"""How to export each network, by name."""

SERVABLE = ("tiny", "two", "tuple", "in-place", "padded", "fixed", "sliced", "open-batch")


def main(folder: Path) -> None:
    for name, write in EXPORTS.items():
        write(folder / name / f"{name}.mindir")


if __name__ == "__main__":
    import sys
    from pathlib import Path

    main(Path(sys.argv[1]))
