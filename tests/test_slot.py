"""Slots: memory that daemon and worker share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadpart_common.codecs.registry import CODECS
from loadpart_common.errors import MessageTooLargeError
from loadpart_common.wire.framing import EncodedTensor, decode
from loadpart_edge.workers.local.messages import (
    Failed,
    PrepareTail,
    RunTail,
    TailPrepared,
    TailRan,
    decode_answer,
    decode_order,
    encode_answer,
    encode_order,
)
from loadpart_edge.workers.local.slot import Slot

if TYPE_CHECKING:
    from collections.abc import Iterator

RAW = CODECS["raw"]


@pytest.fixture
def slot() -> Iterator[Slot]:
    made = Slot.create(4096)
    yield made
    made.close()


def tensor(array: np.ndarray) -> EncodedTensor:
    return EncodedTensor(array.dtype, array.shape, memoryview(RAW.encode(array)))


def test_tensors_come_out_as_they_went_in_and_aligned(slot: Slot) -> None:
    arrays = [np.arange(5, dtype=np.uint8), np.ones((2, 3), np.float32), np.zeros((0, 4), np.int64)]
    placed = slot.put([tensor(array) for array in arrays])
    assert [start % 64 for _, _, start, *_ in placed] == [0, 0, 0]
    for got, want in zip(decode(slot.take(placed), RAW), arrays, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_array_equal(got, want)
        del got  # a view of the slot, which is closed after the test


def test_outputs_come_out_as_bytes(slot: Slot) -> None:
    assert slot.write([b"abc", memoryview(b"def")]) == 6
    assert slot.read(6) == b"abcdef"
    assert slot.write([b"x"]) == 1
    assert slot.read(1) == b"x"


def test_what_does_not_fit_is_refused_with_its_size(slot: Slot) -> None:
    with pytest.raises(MessageTooLargeError, match="tensors of at most 4095 bytes in all, got 5000"):
        slot.put([tensor(np.zeros(5000, np.uint8))])
    with pytest.raises(MessageTooLargeError, match="outputs of at most 4095 bytes"):
        slot.write([bytes(4000), bytes(97)])


def test_messages_come_out_as_they_went_in() -> None:
    for order in (
        RunTail("toy", "exact", "", "a", "toy", "d", 3, "q8z", "raw", 1, (("|u1", (1,), 0, 1, True),)),
        PrepareTail("toy", "bfloat16", "", "a", "toy", "d", 3, 2, 0),
    ):
        assert decode_order(encode_order(order)) == order
    for answer in (
        TailRan(10, 0.1, 0.0, 0.0, ()),
        TailRan(2**40, 0.1, 0.5, 0.25, (("d", 1, 2), ("e", 3, 4))),
        TailPrepared(0.25, 2**33, ()),
        Failed(MessageTooLargeError.code, "too large"),
    ):
        assert decode_answer(encode_answer(answer)) == answer
    assert isinstance(Failed(MessageTooLargeError.code, "too large").error, MessageTooLargeError)


@given(st.one_of(st.binary(max_size=64), st.binary(max_size=64).map(lambda rest: b"R" + rest)))
def test_the_daemon_believes_no_answer_that_is_none(data: bytes) -> None:
    try:
        answer = decode_answer(data)
    except ValueError:
        return
    assert isinstance(answer, TailRan | TailPrepared | Failed)
