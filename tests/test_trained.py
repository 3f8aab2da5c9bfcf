"""Trained weights from files that PyTorch wrote, read without it."""

from __future__ import annotations

import collections
import io
import os
import pickle
import sys
import types
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from loadpart_common.engines.mindspore.zoo.catalog import LABELS, NETWORKS
from loadpart_common.engines.mindspore.zoo.torch_file import read_tensors
from loadpart_common.engines.mindspore.zoo.trained import file_of, labels_of, weights_of
from loadpart_common.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadpart_common.tensors import Array

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


class _Storage:
    """What the pickles refer to by a name: the numbers come after them."""

    def __init__(self, kind: str, key: str, numbers: Array) -> None:
        self.kind, self.key, self.numbers = kind, key, numbers


class _Tensor:
    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments  # type: ignore[attr-defined]


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """Writes such a file, with stand-ins for the few names of PyTorch's that are in there."""
    torch, utilities = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for module, names in (
        (torch, ("FloatStorage", "LongStorage", "HalfStorage")),
        (utilities, ("_rebuild_tensor_v2",)),
    ):
        for name in names:
            made = type(name, (), {"__module__": module.__name__, "__qualname__": name})
            setattr(module, name, made)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utilities)

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if isinstance(obj, _Storage):
                return ("storage", getattr(torch, obj.kind), obj.key, "cpu", len(obj.numbers), None)
            return None

    def written(tensors: Any, storages: list[_Storage], magic: int = _MAGIC) -> Path:
        data = io.BytesIO()
        keys = [storage.key for storage in storages]
        for part in (magic, _VERSION, {"little_endian": True}, tensors, keys):
            Pickler(data, protocol=2).dump(part)
        for storage in storages:
            data.write(len(storage.numbers).to_bytes(8, "little") + storage.numbers.tobytes())
        path = tmp_path / "weights.pth"
        path.write_bytes(data.getvalue())
        return path

    return written


def test_tensors_are_read_whatever_their_layout(write: Callable[..., Path]) -> None:
    floats = _Storage("FloatStorage", "a", np.arange(12, dtype="<f4"))
    count = _Storage("LongStorage", "b", np.array([7], "<i8"))
    path = write(
        collections.OrderedDict(
            rows=_Tensor(floats, 0, (3, 4), (4, 1), False, {}),
            columns=_Tensor(floats, 0, (4, 3), (1, 4), False, {}),
            part=_Tensor(floats, 5, (2,), (3,), False, {}),
            seen=_Tensor(count, 0, (), (), False, {}),
        ),
        [floats, count],
    )
    tensors = read_tensors(path)
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(tensors["rows"], rows)
    np.testing.assert_array_equal(tensors["columns"], rows.T)
    np.testing.assert_array_equal(tensors["part"], [5, 8])
    assert tensors["seen"] == 7


class _Call:
    """Runs a command when it is unpickled by somebody who trusts it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("called",)


def test_a_file_runs_nothing(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"it names posix.mkdir, which no file of weights needs"):
        read_tensors(write({"a": _Call()}, []))
    assert not (tmp_path / "called").exists()


def test_damaged_files_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    floats = _Storage("FloatStorage", "a", np.arange(6, dtype="<f4"))
    halves = _Storage("HalfStorage", "a", np.arange(6, dtype="<f2"))

    def one(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> dict[str, _Tensor]:
        return {"a": _Tensor(storage, offset, shape, strides, False, {})}

    for tensors, storages, message in (
        (one(floats, 2, (6,), (1,)), [floats], "reaches beyond its numbers"),
        (one(floats, 0, (2,), (-1,)), [floats], "reaches beyond its numbers"),
        (one(floats, 0, (2, 2), (4, -3)), [floats], "reaches beyond its numbers"),
        (one(floats, 0, (6,), (1,)), [], "cannot be read"),
        (one(halves, 0, (6,), (1,)), [halves], "names torch.HalfStorage"),
        ([1, 2], [], "cannot be read"),
    ):
        with pytest.raises(ModelError, match=message):
            read_tensors(write(tensors, storages))
    with pytest.raises(ModelError, match="is not a file of weights"):
        read_tensors(write({}, [], magic=1))
    path = write(one(floats, 0, (6,), (1,)), [floats])
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="cannot be read"):
            read_tensors(path)
    with pytest.raises(ModelError, match="cannot be read"):
        read_tensors(tmp_path / "nothing.pth")


def test_the_packages_have_the_weights_and_the_names() -> None:
    info = NETWORKS["efficientnet-lite0"]
    assert info.weights is not None
    path, names = file_of(info.weights), file_of(LABELS)
    assert path is not None
    assert names is not None
    weights = weights_of(path)
    trainable = {
        name: array for name, array in weights.items() if not name.endswith(("moving_mean", "moving_variance"))
    }
    assert sum(array.size for array in trainable.values()) == info.parameters
    labels = labels_of(names)
    assert (len(labels), labels[0], labels[967]) == (1000, "tench", "espresso")
