"""Codecs: what they give back, what they refuse to write, and what they refuse to read."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS
from loadpart_common.codecs.timing import encode_seconds_a_byte
from loadpart_common.errors import InputError, SettingsError
from loadpart_common.tensors import DTYPES, TensorSpec
from loadpart_common.wire.framing import check, decode, read_message, with_tensors

LOSSLESS = [name for name in CODECS if CODECS[name].is_lossless]
PICTURES = [name for name in CODECS if name.startswith(("webp", "jpeg"))]
NUMBERS = ["q8", "q8z"]

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
pictures = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1)).map(
    lambda sizes: picture(*sizes)
)


def picture(number: int, height: int, width: int, seed: int) -> np.ndarray:
    """Pictures that compress: slopes with a little noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[:, None]
    slopes = rng.integers(0, 4, 3) * rows + rng.integers(0, 4, 3) * columns
    return (slopes + rng.integers(0, 2, (number, height, width, 3))).clip(0, 255).astype(np.uint8)


def activations(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (np.maximum(rng.standard_normal(shape), 0) * 10.0 ** rng.integers(-3, 3)).astype(dtype)


def crossed(name: str, arrays: list[np.ndarray]) -> tuple[list[np.ndarray], bytes]:
    """Arrays as the other side gets them, and the message."""
    data = with_tensors(offload_pb2.InferRequest(), arrays, CODECS[name])
    _, tensors = read_message(offload_pb2.InferRequest, data)
    check(tensors, CODECS[name])
    return decode(tensors, CODECS[name]), data


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


# What comes back.


@pytest.mark.parametrize("name", LOSSLESS)
@given(st.lists(hnp.arrays(st.sampled_from([np.dtype(name) for name in DTYPES]), shapes), max_size=3))
def test_lossless_codecs_give_every_bit_of_any_tensors_back(name: str, arrays: list[np.ndarray]) -> None:
    back, _ = crossed(name, arrays)
    assert all(map(same, arrays, back))


@given(pictures, st.sampled_from(["as it is", "turned", "every other", "one channel doubled"]))
def test_pictures_come_back_bit_for_bit_whatever_their_memory(array: np.ndarray, how: str) -> None:
    if how == "turned":
        array = array[:, ::-1, ::-1]
    elif how == "every other":
        array = array[:, ::2]
    elif how == "one channel doubled":
        array = array[..., [0, 0, 2]]
    (back,), _ = crossed("webp-lossless", [array])
    assert same(np.ascontiguousarray(array), back)


def test_a_photograph_takes_half_its_bytes_without_loss() -> None:
    array = CODECS["webp-lossless"].sample()
    (back,), data = crossed("webp-lossless", [array])
    assert same(array, back)
    assert len(data) < 0.6 * array.nbytes


@pytest.mark.parametrize("name", NUMBERS)
@given(
    st.sampled_from([(64,), (1, 64), (3, 100), (2, 8, 9, 4), (1, 1, 200)]),
    st.sampled_from(["float32", "float16"]),
    st.integers(0, 2**32 - 1),
    st.floats(-1e4, 1e4),
)
def test_eight_bits_stay_within_the_bound_that_is_stated(
    name: str, shape: tuple[int, ...], dtype: str, seed: int, offset: float
) -> None:
    array = activations(shape, dtype, seed) + np.dtype(dtype).type(offset)
    (back,), data = crossed(name, [array])
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    rows = (array[None] if array.ndim == 1 else array).reshape(1 if array.ndim == 1 else shape[0], -1).astype(float)
    difference = np.abs(back.reshape(rows.shape).astype(float) - rows).max(axis=1)
    steps = (rows.max(axis=1) - rows.min(axis=1)) / 255
    assert (difference <= steps / 2 + 2.0 ** (-21 if dtype == "float32" else -10) * np.abs(rows).max(axis=1)).all()
    assert len(data) < array.nbytes + 32


@pytest.mark.parametrize("name", NUMBERS)
@given(hnp.arrays(np.float32, st.sampled_from([(64,), (2, 80)]), elements=st.floats(width=32)))
def test_any_numbers_come_back_whole_or_near(name: str, array: np.ndarray) -> None:
    back, _ = crossed(name, [array])
    if not same(back[0], array):
        spread = float(array.max()) - float(array.min())
        assert np.isfinite(spread)
        bound = spread / 510 + 2.0**-21 * float(np.abs(array).max())
        assert float(np.abs(back[0].astype(float) - array).max()) <= bound


@pytest.mark.parametrize("name", NUMBERS)
def test_a_tensor_of_one_value_comes_back_exactly(name: str) -> None:
    array = np.full((2, 300), -0.1, np.float32)
    (back,), _ = crossed(name, [array])
    assert same(back, array)


@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -np.inf, 1e30, 3e38], ids=["nan", "inf", "-inf", "an outlier", "a range too large"]
)
@pytest.mark.parametrize("name", NUMBERS)
def test_a_tensor_that_eight_bits_would_ruin_goes_raw(name: str, value: float) -> None:
    array = activations((2, 500), "float32", 1)
    array[1, 7] = value
    assert CODECS[name].encode(array) is None
    other = activations((1, 500), "float32", 2)
    (back, back_other), data = crossed(name, [array, other])
    assert same(back, array)
    assert not same(back_other, other), "the other one is written by the codec all the same"
    _, tensors = read_message(offload_pb2.InferRequest, data)
    assert [tensor.is_raw for tensor in tensors] == [True, False]


@pytest.mark.parametrize("name", NUMBERS)
def test_denormal_numbers_go_raw(name: str) -> None:
    array = (np.arange(100) * 1e-42).astype(np.float32)
    assert CODECS[name].encode(array) is None


@pytest.mark.parametrize("name", [name for name in PICTURES if name.startswith("jpeg")])
def test_jpeg_is_near_and_nearer_with_higher_quality(name: str) -> None:
    array = CODECS[name].sample()
    (back,), data = crossed(name, [array])
    assert np.abs(back.astype(int) - array).mean() < 8
    assert len(data) < 0.2 * array.nbytes


@pytest.mark.parametrize("name", PICTURES)
def test_noise_that_no_codec_makes_smaller_goes_raw(name: str) -> None:
    array = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    (back,), _ = crossed(name, [array])
    assert same(back, array)


# What they are for.


@pytest.mark.parametrize("name", list(CODECS))
def test_a_codec_takes_its_sample_and_says_how_quick_it_is(name: str) -> None:
    codec = CODECS[name]
    sample = codec.sample()
    assert codec.takes(TensorSpec("x", sample.dtype.name, (-1, *sample.shape[1:])))
    assert codec.name == name
    assert 0 < encode_seconds_a_byte(codec) < 1e-5


@pytest.mark.parametrize(
    ("name", "spec", "takes"),
    [
        ("raw", TensorSpec("x", "int64", ()), True),
        ("webp-lossless", TensorSpec("x", "uint8", (-1, 224, 224, 3)), True),
        ("webp-lossless", TensorSpec("x", "uint8", (-1, 224, 224, 1)), False),
        ("webp-lossless", TensorSpec("x", "uint8", (-1, 20000, 224, 3)), False),
        ("webp-lossless", TensorSpec("x", "float32", (-1, 224, 224, 3)), False),
        ("jpeg-90", TensorSpec("x", "uint8", (-1, 20000, 224, 3)), True),
        ("q8", TensorSpec("x", "float32", (-1, 64, 7, 7)), True),
        ("q8", TensorSpec("x", "float16", (-1, 64, 7, 7)), True),
        ("q8", TensorSpec("x", "float64", (-1, 64, 7, 7)), False),
        ("q8", TensorSpec("x", "float32", (-1, 10)), False),
        ("q8z", TensorSpec("x", "float32", ()), False),
    ],
)
def test_codecs_take_what_they_are_made_for(name: str, spec: TensorSpec, takes: bool) -> None:
    assert CODECS[name].takes(spec) is takes


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(SettingsError, match=r"codec: expected one of raw, webp-lossless.*got 'gif'"):
        CODECS["gif"]


# Hostile bytes.


def good(name: str, array: np.ndarray) -> bytes:
    data = CODECS[name].encode(array)
    assert data is not None
    return bytes(data)


def refused(name: str, data: bytes, array: np.ndarray, match: str = "expected") -> None:
    with pytest.raises(InputError, match=match):
        CODECS[name].decode(data, array.dtype, array.shape)


def example(name: str) -> np.ndarray:
    return picture(2, 40, 32, 0) if name in PICTURES else activations((2, 16, 8, 8), "float32", 0)


@pytest.mark.parametrize("name", PICTURES + NUMBERS)
@given(st.data())
def test_mutated_bytes_are_refused_or_give_such_a_tensor(name: str, data: st.DataObject) -> None:
    array = example(name)
    payload = bytearray(good(name, array))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(payload) - 1))
        match data.draw(st.sampled_from(["change", "cut", "insert", "remove"])):
            case "change":
                payload[place] = data.draw(st.integers(0, 255))
            case "cut":
                del payload[place + 1 :]
            case "insert":
                payload.insert(place, data.draw(st.integers(0, 255)))
            case "remove" if len(payload) > 1:
                del payload[place]
    assume(payload)
    try:
        back = CODECS[name].decode(bytes(payload), array.dtype, array.shape)
    except InputError:
        return
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert name in PICTURES or np.isfinite(back).all()


@pytest.mark.parametrize("name", PICTURES + NUMBERS)
def test_bytes_that_are_cut_short_or_too_many_are_refused(name: str) -> None:
    array = example(name)
    data = good(name, array)
    refused(name, data[: len(data) // 2], array)
    refused(name, data[:3], array)
    refused(name, data + b"\0", array)
    refused(name, bytes(array.nbytes), array, "fewer than")
    refused(name, b"", array)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_other_sizes_numbers_and_modes_are_refused(name: str) -> None:
    array = picture(2, 40, 32, 0)
    refused(name, good(name, picture(2, 32, 40, 0)), array, "40x32|expected a picture")
    refused(name, good(name, picture(1, 40, 32, 0)), array, "expected 2 picture")
    refused(name, good(name, picture(3, 40, 32, 0)), array, "expected 2 picture")
    for mode in ("L", "RGBA", "CMYK", "P"):
        for kind in ("WEBP", "JPEG", "PNG", "GIF"):
            file = io.BytesIO()
            try:
                Image.fromarray(array[0]).convert(mode).save(file, kind)
            except (OSError, ValueError):  # there is no such file
                continue
            piece = struct.pack("<I", file.tell()) + file.getvalue()
            if len(piece) * 2 < array.nbytes and (mode, kind) != ("P", "WEBP"):
                refused(name, piece * 2, array)


def declaring(width: int, height: int) -> bytes:
    """A file in WebP whose canvas is of another size than its picture."""
    file = io.BytesIO()
    Image.fromarray(picture(1, 40, 32, 0)[0]).save(file, "WEBP", lossless=True, method=0)
    body = file.getvalue()[12:]
    canvas = struct.pack("<4sI4B", b"VP8X", 10, 0, 0, 0, 0) + (width - 1).to_bytes(3, "little")
    canvas += (height - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 4 + len(canvas + body)) + b"WEBP" + canvas + body


def test_bombs_are_refused_before_memory_is_taken() -> None:
    from backports import zstd

    array = activations((1, 64, 40, 40), "float32", 0)
    zeros = zstd.compress(bytes(256 << 20), 1)
    unsized = zstd.ZstdCompressor(options={zstd.CompressionParameter.content_size_flag: 0})
    bombs = [
        ("q8z", zeros, array),
        ("q8z", unsized.compress(bytes(64 << 20)) + unsized.flush(), array),
        ("q8z", good("q8z", array) + zeros[:1000], array),
        ("webp-lossless", length_before(declaring(16000, 16000)), picture(1, 40, 32, 0)),
    ]
    large = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(large, "JPEG")
    many = io.BytesIO()
    Image.fromarray(picture(1, 400, 320, 0)[0]).save(many, "JPEG", progressive=True)
    bombs.append(("jpeg-75", length_before(many.getvalue()), picture(1, 400, 320, 0)))
    scans = good("jpeg-75", picture(1, 400, 320, 0))[4:]
    scan = scans.index(b"\xff\xda")
    again = scans[:scan] + scans[scan : scan + 14] * 1000 + scans[scan:]
    bombs.append(("jpeg-75", length_before(again), picture(1, 400, 320, 0)))
    bombs.append(("jpeg-75", length_before(large.getvalue())[: 8 << 20], picture(1, 4000, 3200, 0)))
    tracemalloc.start()
    for name, data, expected in bombs:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        refused(name, data, expected)
        assert tracemalloc.get_traced_memory()[1] - before < 3 * expected.nbytes + (1 << 20)
    tracemalloc.stop()


def length_before(file: bytes) -> bytes:
    return struct.pack("<I", len(file)) + file


@pytest.mark.parametrize("header", [(np.nan, 1.0), (0.0, np.inf), (0.0, -1.0), (3e38, 1e37), (-1e300, 0.0)], ids=str)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_none_are_refused(name: str, header: tuple[float, float]) -> None:
    from backports import zstd

    array = activations((1, 100), "float32", 0)
    data = struct.pack("<2d", *header) + bytes(100)
    refused(name, zstd.compress(data, 1) if name == "q8z" else data, array, "finite numbers")
