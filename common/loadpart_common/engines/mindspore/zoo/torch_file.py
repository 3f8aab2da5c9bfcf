"""Reads the weights in a file that PyTorch wrote before its release 1.6, without PyTorch.

Such a file is a row of pickles: a magic number, the format's version, a description of the machine, the tensors by
name, and the names of the storages that the tensors share; then come the numbers of each storage. A pickle can call any
function, so this reader lets it name only what tensors are made of.
"""

from __future__ import annotations

import collections
import pickle
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loadpart_common.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    from loadpart_common.tensors import Array

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_COUNT_BYTES = 8
_DTYPES = {"FloatStorage": "<f4", "LongStorage": "<i8"}


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype[Any]


class _Tensor(NamedTuple):
    """The arguments of PyTorch's function that makes a tensor, as far as they matter."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _DTYPES:
            return np.dtype(_DTYPES[name])
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no file of weights needs")

    def persistent_load(self, reference: Any) -> _Storage:
        _, dtype, key, *_ = reference
        return _Storage(key, dtype)


def _rebuild(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def read_tensors(path: Path) -> dict[str, Array]:
    """The tensors of a file by name.

    Raises:
        ModelError: It is no such file, or it has something else than tensors of 32-bit floats or 64-bit integers.
    """
    try:
        with path.open("rb") as file:
            magic, version, _ = (_Unpickler(file).load() for _ in range(3))
            if (magic, version) != (_MAGIC, _VERSION):
                raise ModelError(f"{path} is not a file of weights that PyTorch wrote before its release 1.6")
            tensors: dict[str, _Tensor] = _Unpickler(file).load()
            dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
            storages = {key: _read_storage(file, dtypes[key]) for key in _Unpickler(file).load()}
        return {name: _array(tensor, storages[tensor.storage.key]) for name, tensor in tensors.items()}
    except (OSError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read as PyTorch weights: {error}") from error


def _read_storage(file: IO[bytes], dtype: np.dtype[Any]) -> Array:
    count = int.from_bytes(file.read(_COUNT_BYTES), "little")
    numbers = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    if len(numbers) != count:
        raise ValueError("it is cut short")
    return numbers


def _array(tensor: _Tensor, storage: Array) -> Array:
    last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.strides, strict=True))
    if tensor.offset < 0 or min(tensor.strides, default=0) < 0 or last >= len(storage):
        raise ValueError(f"a tensor of shape {tensor.shape} reaches beyond its numbers")
    steps = [step * storage.itemsize for step in tensor.strides]
    return np.ascontiguousarray(np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, steps))
