"""When the device begins its own tail, and what it believes of a server."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadpart.v1 import offload_pb2
from loadpart_device.edges.lateness import Lateness
from loadpart_device.edges.plausible import Doubts, are_tail_seconds, is_seconds, is_status
from loadpart_device.hedging import Hedging
from tests.support import Clock


def margin(_: float) -> float:
    return 0.02


def test_the_device_begins_when_the_answer_is_later_than_predicted_by_the_margin() -> None:
    hedging = Hedging(clock=Clock())
    assert hedging.wait_seconds(0.05, margin, alone=1.0, tail=1.0, deadline=None) == pytest.approx(0.07)


def test_it_begins_sooner_where_the_answer_would_come_much_later_than_of_the_device_alone() -> None:
    hedging = Hedging(clock=Clock())
    after = hedging.wait_seconds(0.05, lambda _: 1.0, alone=0.1, tail=0.1, deadline=None)
    assert after + 0.1 <= 1.3 * 0.1 + 0.05 + 1e-9
    unknown = hedging.wait_seconds(None, margin, alone=0.1, tail=0.06, deadline=None)
    assert unknown + 0.06 == pytest.approx(1.25 * 0.1 + 0.04)


def test_it_never_begins_before_the_answer_is_expected() -> None:
    hedging = Hedging(clock=Clock())
    assert hedging.wait_seconds(0.9, margin, alone=1.0, tail=1.0, deadline=None) > 0.9


def test_a_deadline_leaves_time_for_the_tail() -> None:
    for is_on in (True, False):
        hedging = Hedging(is_on=is_on, clock=Clock())
        after = hedging.wait_seconds(0.5, margin, alone=0.1, tail=0.1, deadline=0.2)
        assert 0 < after <= 0.2 - 0.1
    assert Hedging(is_on=False).wait_seconds(0.5, margin, alone=0.1, tail=0.1, deadline=None) == math.inf


def test_what_is_wasted_is_bounded() -> None:
    clock = Clock()
    hedging = Hedging(clock=clock)
    usual = hedging.wait_seconds(0.05, margin, alone=1.0, tail=1.0, deadline=None)
    for _ in range(5):
        hedging.wasted(2.1)
    assert hedging.wasted_seconds == pytest.approx(10.5)
    assert hedging.wait_seconds(0.05, margin, alone=1.0, tail=1.0, deadline=None) > usual
    clock.now += 51  # 1 % of that is what was beyond the credit
    assert hedging.wait_seconds(0.05, margin, alone=1.0, tail=1.0, deadline=None) == usual


def test_the_more_was_wasted_the_less_time_is_spared() -> None:
    clock = Clock()
    hedging = Hedging(clock=clock)
    begins = []
    for _ in range(4):
        begins.append(hedging.wait_seconds(0.05, lambda _: 1.0, alone=0.1, tail=0.1, deadline=None))
        hedging.wasted(0.2)
    assert begins == sorted(begins)
    assert begins[0] == pytest.approx(0.08 - 0.015)
    assert begins[-1] == pytest.approx(0.08)


def test_the_margin_is_beyond_the_errors_that_came() -> None:
    lateness = Lateness()
    assert lateness.margin_seconds(0.1) == pytest.approx(0.05)
    for error in range(50):
        lateness.record(0.1, 0.1 + error * 1e-4)
    assert 0.0049 < lateness.margin_seconds(0.1) < 0.0085
    for _ in range(128):
        lateness.record(0.1, 0.09)
    assert lateness.margin_seconds(0.1) == pytest.approx(0.002), "old errors are forgotten"
    lateness.forget()
    assert lateness.margin_seconds(0.1) == pytest.approx(0.05)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-9, 1e300])
def test_what_cannot_be_is_not_believed(value: float) -> None:
    assert not is_seconds(value)
    good = {"backlog_seconds": 0.1, "mean_backlog_seconds": 0.1, "slow_down": 1.0, "externality_seconds": 0.0}
    assert is_status(offload_pb2.ServerStatus(**good))  # type: ignore[arg-type]
    for field in good:
        assert not is_status(offload_pb2.ServerStatus(**good | {field: value})), field  # type: ignore[arg-type]
    assert not are_tail_seconds(np.array([0.1, value, 0.0]), 2)


def test_tails_are_as_many_as_there_are_cuts() -> None:
    assert are_tail_seconds(np.array([0.2, 0.1, 0.0]), 2)
    assert not are_tail_seconds(np.array([0.2, 0.1]), 2)


def test_doubts_are_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    doubts = Doubts("edge:1")
    for _ in range(3):
        doubts.add("status")
    assert doubts.count == 3
    assert [record.getMessage() for record in caplog.records] == [
        "edge:1 sends a status that cannot be true; it is ignored"
    ]
