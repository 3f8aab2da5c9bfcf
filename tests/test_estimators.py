"""Link, load and policies, by themselves: clocks and readings are given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadpart_common.cost import Plans, Point
from loadpart_device.link import MEASURABLE_BYTES, LinkEstimator, LinkReading
from loadpart_device.policies import ServerLoad, World, make_policy
from loadpart_edge.load import SlowDown
from tests.test_graph import chain


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_link_is_unknown_until_round_trip_and_bandwidth_are_read() -> None:
    link = LinkEstimator(Clock())
    assert link.reading is None
    link.record(MEASURABLE_BYTES * 10, 1.0)  # without a round trip this tells nothing
    assert link.reading is None
    link.record(0, 0.010)
    assert link.reading is None
    link.record(1_000_000, 1.010)
    assert link.reading == LinkReading(pytest.approx(0.010), pytest.approx(1e-6))
    assert str(link.reading) == "8 Mbit/s, round trip 10 ms"
    link.forget()
    assert link.reading is None


def test_small_messages_are_not_taken_for_bandwidth() -> None:
    link = LinkEstimator(Clock())
    link.record(0, 0.010)
    link.record(1_000_000, 1.010)
    for _ in range(20):
        link.record(MEASURABLE_BYTES - 1, 0.011)
    assert link.reading is not None
    assert link.reading.seconds_per_byte == pytest.approx(1e-6)


def test_one_outlier_moves_nothing() -> None:
    link = LinkEstimator(Clock())
    link.record(0, 0.010)
    for seconds in (1.010, 1.010, 9.0):
        link.record(1_000_000, seconds)
    link.record(0, 5.0)
    assert link.reading is not None
    assert link.reading.seconds_per_byte == pytest.approx(1e-6)
    assert link.reading.round_trip_seconds == pytest.approx(0.010)


def test_a_step_of_the_bandwidth_is_followed_by_the_second_transfer() -> None:
    link = LinkEstimator(Clock())
    link.record(0, 0.010)
    for seconds in (0.135, 0.135, 0.135, 2.010, 2.010):
        link.record(1_000_000, seconds)
    assert link.reading is not None
    assert link.reading.seconds_per_byte == pytest.approx(2e-6)


def test_a_reading_has_an_age() -> None:
    clock = Clock()
    link = LinkEstimator(clock)
    assert link.age_seconds == float("inf")
    link.record(0, 0.01)
    link.record(1_000_000, 1.0)
    clock.now += 7
    assert link.age_seconds == 7


def test_slow_down_is_the_median_of_the_window_and_falls_back() -> None:
    clock = Clock()
    slow_down = SlowDown(clock)
    assert slow_down.value == 1
    for ratio in (2.0, 3.0, 50.0):
        slow_down.record(0.1, 0.1 * ratio)
    assert slow_down.value == pytest.approx(3)
    clock.now += 60
    assert slow_down.value == 1


@given(st.lists(st.tuples(st.floats(1e-6, 10), st.floats(1e-6, 10)), max_size=50))
def test_slow_down_is_never_below_one(readings: list[tuple[float, float]]) -> None:
    slow_down = SlowDown(Clock())
    for predicted, measured in readings:
        slow_down.record(predicted, measured)
    assert slow_down.value >= 1


FAST_LINK, THIN_LINK = LinkReading(0.001, 1e-9), LinkReading(0.001, 1e-5)
PLANS = Plans(
    [
        Point(0, 0.0, 150_000, 0.02, remote=True),
        Point(2, 0.03, 10_000, 0.01, remote=True),
        Point(5, 0.2, 0, 0.0, remote=False),
    ]
)


IDLE = ServerLoad(1.0, 0.0)


def cut_of(
    policy: str | int, link: LinkReading | None = FAST_LINK, load: ServerLoad | None = IDLE, **world: object
) -> int:
    known = World(**({"link": link, "load": load, "device_slow_down": 1.0, "unavailable": None} | world))  # type: ignore[arg-type]
    return make_policy(policy, chain(5)).choose(PLANS, known, 1).cut


def test_policies() -> None:
    assert cut_of("load-aware") == 0
    assert cut_of("load-aware", THIN_LINK) == 2
    assert cut_of("load-aware", load=ServerLoad(100, 0)) == 5
    assert cut_of("load-aware", load=ServerLoad(1, 3)) == 5
    assert cut_of("bandwidth-only", load=ServerLoad(100, 3)) == 0
    assert cut_of("bandwidth-only", THIN_LINK) == 2
    assert cut_of("local") == 5
    assert cut_of("offload", THIN_LINK) == 0
    assert cut_of(3) == 3


@pytest.mark.parametrize("policy", ["load-aware", "bandwidth-only"])
def test_what_is_not_known_is_not_invented(policy: str) -> None:
    assert cut_of(policy, link=None) == 5
    assert cut_of(policy, load=None) == 5


@pytest.mark.parametrize("policy", ["load-aware", "bandwidth-only", "offload", 3])
def test_a_server_that_is_not_there_is_not_asked(policy: str | int) -> None:
    assert cut_of(policy, unavailable="the server failed") == 5


def test_small_gains_do_not_switch() -> None:
    policy = make_policy("load-aware", chain(5))
    for slow_down, expected in ((1.0, 0), (3.2, 0), (4.0, 2), (2.9, 2), (1.0, 0)):
        world = World(LinkReading(0.001, 1e-9), ServerLoad(slow_down, 0), 1.0, None)
        assert policy.choose(PLANS, world, 1).cut == expected, slow_down
