from __future__ import annotations

import os
import subprocess
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS, codec_named
from loadpart_common.errors import InputError, RequestError
from loadpart_common.protobuf_fields import encode_varint, field_prefix
from loadpart_common.tensors import DTYPES, TensorSpec, check_arrays
from loadpart_common.text import printable
from loadpart_common.wire.framing import check, decode, read_message, with_tensors
from tests.support import code

RAW = CODECS["raw"]


def read(data: bytes) -> tuple[offload_pb2.InferRequest, list[np.ndarray]]:
    """A request and its tensors, read as daemon and worker do: first checked, then decoded."""
    message, tensors = read_message(offload_pb2.InferRequest, data)
    codec = codec_named(message.codec)
    check(tensors, codec)
    return message, decode(tensors, codec)


arrays = hnp.arrays(
    st.sampled_from([np.dtype(name) for name in DTYPES]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


@given(st.lists(arrays, max_size=4), st.text(max_size=20), st.integers(0, 1000))
def test_round_trip_is_exact(tensors: list[np.ndarray], model: str, cut: int) -> None:
    head = offload_pb2.InferRequest(model=model, cut=cut, codec="raw")
    data = with_tensors(head, tensors, RAW)
    message, back = read(data)
    assert message == head
    assert [array.dtype for array in back] == [array.dtype for array in tensors]
    assert [array.shape for array in back] == [array.shape for array in tensors]
    assert [array.tobytes() for array in back] == [array.tobytes() for array in tensors]


@given(st.lists(st.tuples(st.integers(0, 3), hnp.arrays(np.uint8, 3)), min_size=2, max_size=6))
def test_messages_of_one_length_are_told_apart(requests: list[tuple[int, np.ndarray]]) -> None:
    dtypes = ("uint8", "int8", "bool")
    for which, bits in requests:
        array = (bits % 2).view(dtypes[which % 3])
        head = offload_pb2.InferRequest(model="abcd"[which], codec="raw")
        data = with_tensors(head, [array], RAW)
        message, (back,) = read(data)
        assert message == head
        assert back.dtype == array.dtype
        assert back.tobytes() == array.tobytes()


@given(st.lists(arrays, min_size=1, max_size=3))
def test_it_is_plain_protobuf(tensors: list[np.ndarray]) -> None:
    data = with_tensors(offload_pb2.InferRequest(model="m", codec="raw"), tensors, RAW)
    message = offload_pb2.InferRequest.FromString(data)
    assert [bytes(tensor.data) for tensor in message.tensors] == [array.tobytes() for array in tensors]
    _, back = read(message.SerializeToString())
    assert [array.tobytes() for array in back] == [array.tobytes() for array in tensors]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_request_error(data: bytes) -> None:
    try:
        read(data)
    except RequestError:
        return


@given(st.integers(0, 2**32 - 1))
def test_a_damaged_request_is_what_protobuf_reads_or_a_request_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    head = offload_pb2.InferRequest(model="m", digest="0" * 64, cut=3, codec="raw")
    data = bytearray(with_tensors(head, [np.ones((2, 3), np.float32), np.ones((1, 4), np.int64)], RAW))
    read(bytes(data))  # from now on its layout is cached
    for position in rng.integers(0, len(data), rng.integers(1, 5)):
        data[position] ^= 1 << rng.integers(0, 8)
    if rng.integers(0, 2):
        del data[rng.integers(1, len(data)) :]
    try:
        message, back = read(bytes(data))
    except RequestError:
        return
    expected = offload_pb2.InferRequest.FromString(bytes(data))
    assert [array.tobytes() for array in back] == [tensor.data for tensor in expected.tensors]
    expected.ClearField("tensors")
    assert message == expected


def test_text_that_is_no_text_is_a_request_error_in_any_runtime_of_protobuf() -> None:
    """The runtime in Python, which some platforms have, raises an error of its own for it."""
    program = """
        from google.protobuf.internal import api_implementation
        from loadpart.v1 import offload_pb2
        from loadpart_common.errors import RequestError
        from loadpart_common.wire.framing import parse, read_message
        for read in (parse, read_message):
            try:
                read(offload_pb2.InferRequest, bytes([0x0A, 1, 0x95]))
            except RequestError as error:
                print(api_implementation.Type(), error)
    """
    for runtime in ("python", "upb"):
        with mock.patch.dict(os.environ, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=runtime):
            lines = subprocess.check_output(code(program), text=True).splitlines()
        assert [line.startswith(f"{runtime} the bytes are not a message") for line in lines] == [True, True]


def test_transposed_arrays_are_sent_as_they_look() -> None:
    array = np.arange(6, dtype=np.int32).reshape(2, 3).T
    _, (back,) = read(with_tensors(offload_pb2.InferRequest(codec="raw"), [array], RAW))
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (offload_pb2.Tensor(data_type=1, shape=[2], data=b"1234567"), "expected 8 bytes for float32.*got 7"),
        (offload_pb2.Tensor(data_type=1, shape=[-2], data=b""), "expected sizes of 0 or more"),
        (offload_pb2.Tensor(shape=[2], data=b"12"), "unknown data type 0"),
        (offload_pb2.Tensor(data_type=99, shape=[2], data=b"12"), "unknown data type 99"),  # type: ignore[arg-type]
        (offload_pb2.Tensor(data_type=2, shape=[2**40, 2**40], data=b"12"), "expected .* bytes"),
        (offload_pb2.Tensor(data_type=2, shape=[1] * 33, data=b"1"), "expected at most 32 dimensions, got 33"),
        (offload_pb2.Tensor(data_type=2, shape=[0, 2**62, 2**62]), "expected a shape that an array can have"),
    ],
)
def test_a_wrong_tensor_says_what_was_expected(tensor: offload_pb2.Tensor, message: str) -> None:
    data = offload_pb2.InferRequest(tensors=[tensor], codec="raw").SerializeToString()
    for _ in range(2):  # the second time its layout may be cached
        with pytest.raises(InputError, match=f"tensor 0: {message}"):
            read(data)


def test_an_unknown_codec_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="unknown codec 'zip': expected one of raw"):
        read(offload_pb2.InferRequest(codec="zip").SerializeToString())


@given(st.integers(0, 2**63 - 1))
def test_varints_are_as_protobuf_writes_them(value: int) -> None:
    assert offload_pb2.ServerStatus(models_version=value).SerializeToString() == (
        encode_varint(7 << 3) + encode_varint(value) if value else b""
    )


def test_field_prefix_is_as_protobuf_writes_it() -> None:
    assert offload_pb2.ModelInfo(digest="x" * 300).SerializeToString() == field_prefix(2, 300) + b"x" * 300


def test_shapes_are_checked_by_name() -> None:
    spec = TensorSpec("image", "uint8", (-1, 4, 4, 3))
    assert check_arrays([np.zeros((5, 4, 4, 3), np.uint8)], (spec,)) == 5
    for array, message in (
        (np.zeros((5, 4, 4, 3), np.float32), "'image': expected dtype uint8, got float32"),
        (np.zeros((5, 4, 4, 3), ">u2"), "'image': expected dtype uint8, got >u2"),
        (np.zeros((4, 4, 3), np.uint8), r"'image': expected uint8\[N, 4, 4, 3\], got shape \[4, 4, 3\]"),
        (np.zeros((1, 4, 4, 4), np.uint8), r"'image': expected uint8\[N, 4, 4, 3\], got shape \[1, 4, 4, 4\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), "'image': expected a batch of 1"),
    ):
        with pytest.raises(InputError, match=message):
            check_arrays([array], (spec,))
    with pytest.raises(InputError, match=r"expected 1 tensor\(s\).*got 0"):
        check_arrays([], (spec,))
    with pytest.raises(InputError, match="expected a batch of 2"):
        check_arrays([np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 4, 4, 3), np.uint8)], (spec, spec))


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x22\x00" * 500_000,  # empty tensors
        b"\x08\x01" * 500_000,  # fields that are none
        b"\x0a\x00" * 500_000,
        b"\x22\xc0\x84\x3d" + b"\x10\x01" * 500_000,  # one tensor with a million dimensions
        b"\x22\x85\x96\x1e\x12\x82\x96\x1e" + b"\x01" * 494_338,  # the same, packed
        b"\x0a\xc0\x84\x3d" + b"x" * 1_000_000,  # a long name
    ],
)
def test_a_message_that_would_be_slow_to_read_is_refused_before(bomb: bytes) -> None:
    """Only the outcome is checked: what the bound is about is time, which a benchmark measures."""
    with pytest.raises(RequestError):
        read_message(offload_pb2.InferRequest, bomb)


def test_names_of_strangers_are_printed_in_one_line() -> None:
    assert printable("resnet50") == "resnet50"
    assert printable("a\nb\x1b[2J\u202e") == r"a\nb\x1b[2J\u202e"
    assert printable("x" * 5000, 10) == "xxxxxxxxxx..."
