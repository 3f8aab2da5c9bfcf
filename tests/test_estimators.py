"""The estimators of link and load, on clocks and readings that the tests provide."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadpart.v1 import offload_pb2
from loadpart_common.latency.slow_down import SlowDown
from loadpart_device.edges.direction import MEASURABLE_BYTES
from loadpart_device.edges.link_estimator import LinkEstimator
from loadpart_device.edges.load import LoadFollower, ServerLoad
from loadpart_edge.scheduling.backlog import Backlog
from loadpart_edge.scheduling.devices import ActiveDevices
from loadpart_edge.scheduling.job import Owner
from tests.support import Clock


class Shaper:
    """Simulates a token bucket like `tc tbf`, with a round trip and noise, on a simulated clock."""

    def __init__(self, clock: Clock, rate: float, burst: int = 32 << 10, noise: float = 0.0) -> None:
        self.clock, self.rate, self.burst, self.noise = clock, rate, burst, noise
        self.tokens, self.filled_at = float(burst), clock.now
        self.random = random.Random(0)

    def send(self, nbytes: int) -> float:
        self.tokens = min(self.burst, self.tokens + (self.clock.now - self.filled_at) * self.rate)
        seconds = ROUND_TRIP + max(nbytes - self.tokens, 0) / self.rate
        self.tokens = max(self.tokens - nbytes, 0)
        self.clock.now += seconds
        self.filled_at = self.clock.now
        return seconds * (1 + self.random.uniform(0, self.noise))


ROUND_TRIP = 0.002
RATES = [megabits * 1e6 / 8 for megabits in (1, 8, 64, 200)]


def probed(shaper: Shaper) -> LinkEstimator:
    """An estimator that has read the first probes: small ones, and a pair of large ones."""
    link = LinkEstimator(shaper.clock)
    for _ in range(3):
        link.record(0, 0, shaper.send(0))
    link.record_pair((65536, shaper.send(65536)), (262144, shaper.send(262144)))
    return link


def rate_of(link: LinkEstimator) -> float:
    assert link.reading is not None
    return 1 / link.reading.seconds_per_byte


def test_a_link_is_unknown_until_round_trip_and_bandwidth_are_read() -> None:
    link = LinkEstimator(Clock())
    assert link.reading is None
    link.record(MEASURABLE_BYTES * 10, 0, 1.0)  # gives no bandwidth without a round trip
    assert link.reading is None
    link.record(0, 0, 0.010)
    assert link.reading is None
    link.record(1_000_000, 0, 1.010)
    assert link.reading is not None
    assert link.reading.seconds_per_byte == pytest.approx(1e-6)
    assert str(link.reading) == "8 Mbit/s, round trip 10 ms"
    link.forget()
    assert link.reading is None


@pytest.mark.parametrize("rate", RATES)
def test_a_pair_of_probes_tells_the_rate_behind_a_bucket(rate: float) -> None:
    shaper = Shaper(Clock(), rate)
    link = probed(shaper)
    assert rate_of(link) == pytest.approx(rate, rel=0.1)
    shaper.clock.now += 60
    assert link.reading is not None
    assert link.reading.free_bytes == pytest.approx(32 << 10, rel=0.35)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("pause", [0.0, 0.05, 5.0])
def test_transfers_tell_the_rate_however_full_the_bucket(rate: float, pause: float) -> None:
    shaper = Shaper(Clock(), rate)
    link = probed(shaper)
    for _ in range(8):
        shaper.clock.now += pause
        link.record(150_000, 4_000, shaper.send(150_000))
    assert rate_of(link) == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize("rate", [125e3, 500e3, 2e6])
@pytest.mark.parametrize("burst", [0, 32 << 10])
def test_a_small_probe_tells_whether_the_link_is_what_it_was(rate: float, burst: int) -> None:
    shaper = Shaper(Clock(), rate, burst, noise=0.02)
    link = probed(shaper)
    shaper.clock.now += 30
    assert link.reading is not None
    nbytes = int(link.reading.free_bytes + max(8192, 0.02 * rate))
    assert link.check(nbytes, shaper.send(nbytes))
    assert link.age_seconds == 0
    for factor in (2, 0.5):
        shaper.rate = rate * factor
        shaper.clock.now += 30
        assert not link.check(nbytes, shaper.send(nbytes))
        assert link.age_seconds > 0
    assert rate_of(link) == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize("factor", [1 / 16, 1 / 2, 2, 16])
def test_a_step_of_the_bandwidth_is_followed_by_the_second_transfer(factor: float) -> None:
    shaper = Shaper(Clock(), 1e6)
    link = probed(shaper)
    for _ in range(8):
        link.record(150_000, 0, shaper.send(150_000))
    shaper.rate *= factor
    for _ in range(2):
        shaper.clock.now += 1
        link.record(150_000, 0, shaper.send(150_000))
    assert rate_of(link) == pytest.approx(shaper.rate, rel=0.1)


@pytest.mark.parametrize("factor", [1 / 16, 16])
def test_a_step_is_followed_by_the_second_pair_of_probes(factor: float) -> None:
    shaper = Shaper(Clock(), 1e6)
    link = probed(shaper)
    for _ in range(8):
        link.record(150_000, 0, shaper.send(150_000))
    assert link.deviation == 0
    shaper.rate *= factor
    for deviation in (1 / factor - 1, 0):
        shaper.clock.now += 1
        link.record_pair((65536, shaper.send(65536)), (65536, shaper.send(65536)))
        assert link.deviation == pytest.approx(deviation, rel=0.1)
    assert rate_of(link) == pytest.approx(shaper.rate, rel=0.1)


@pytest.mark.parametrize("rate", RATES)
def test_what_a_bucket_lets_through_tells_nothing(rate: float) -> None:
    shaper = Shaper(Clock(), rate, noise=0.1)
    link = probed(shaper)
    before = rate_of(link)
    for _ in range(8):
        shaper.clock.now += 5
        link.record(36_864, 4_000, shaper.send(36_864) + 0.005)  # 4 kB more than the bucket holds
    assert rate_of(link) == before
    assert link.age_seconds > 5, "the estimate stays old, so that the link is probed"


def test_one_slow_reading_counts_as_its_bytes_do() -> None:
    shaper = Shaper(Clock(), 25e6)
    link = probed(shaper)
    link.record(40_000, 0, shaper.send(40_000) + 0.001)  # 1.6 ms of transfer and 1 ms of delay
    assert rate_of(link) == pytest.approx(25e6, rel=0.03)


@pytest.mark.parametrize("rate", [8e6, 25e6])
def test_what_requests_take_beyond_their_bytes_is_no_bandwidth(rate: float) -> None:
    shaper = Shaper(Clock(), rate)
    link = probed(shaper)
    for _ in range(8):
        shaper.clock.now += 1
        link.record(150_000, 0, shaper.send(150_000) + 0.0015)  # 1.5 ms that a probe does not take
        assert rate_of(link) == pytest.approx(rate, rel=0.1)
    assert rate_of(link) == pytest.approx(rate, rel=0.04)
    assert link.reading is not None
    assert link.reading.round_trip_seconds == pytest.approx(ROUND_TRIP + 0.0015, rel=0.1)


def test_a_transfer_that_takes_no_time_to_speak_of_breaks_nothing() -> None:
    clock = Clock()
    link = LinkEstimator(clock)
    link.record(0, 0, 0.002)
    link.record_pair((65536, 0.0021), (262144, 0.0023))
    for seconds in (0.003, 0.0028, 0.0005, 0.0, 0.002, 0.0001):
        clock.now += 1
        link.record(150_000, 4_000, seconds)
        assert link.reading is not None
        assert 0 < link.reading.seconds_per_byte < 1e-7
        assert 0 < link.reading.round_trip_seconds < 0.01


def test_one_outlier_moves_nothing() -> None:
    shaper = Shaper(Clock(), 1e6, noise=0.05)
    link = probed(shaper)
    for _ in range(4):
        link.record(150_000, 0, shaper.send(150_000))
    link.record(150_000, 0, 9.0)
    link.record(0, 0, 5.0)
    assert rate_of(link) == pytest.approx(1e6, rel=0.1)
    assert link.reading is not None
    assert link.reading.round_trip_seconds == pytest.approx(ROUND_TRIP, rel=0.05)


def test_small_messages_are_not_taken_for_bandwidth() -> None:
    link = probed(Shaper(Clock(), 1e6))
    before = rate_of(link)
    for _ in range(20):
        link.record(MEASURABLE_BYTES - 1, 0, 0.011)
    assert rate_of(link) == before


def test_up_and_down_are_apart() -> None:
    clock = Clock()
    link = probed(Shaper(clock, 1e6))
    assert link.reading is not None
    assert link.reading.down_seconds_per_byte == link.reading.seconds_per_byte  # while the downlink is unknown
    down = Shaper(clock, 4e6)
    link.record_pair((65536, down.send(65536)), (262144, down.send(262144)), down=True)
    assert rate_of(link) == pytest.approx(1e6, rel=0.1)
    reading = link.reading
    assert 1 / reading.down_seconds_per_byte == pytest.approx(4e6, rel=0.1)
    assert reading.reply_seconds(1_000_000) == pytest.approx(0.25, rel=0.1)
    assert reading.reply_seconds(0) == 0


def test_a_reading_has_an_age() -> None:
    clock = Clock()
    link = LinkEstimator(clock)
    assert link.age_seconds == float("inf")
    link.record(0, 0, 0.01)
    link.record(1_000_000, 0, 1.0)
    clock.now += 7
    assert link.age_seconds == 7


def test_slow_down_is_the_median_of_the_latest_and_falls_back() -> None:
    clock = Clock()
    slow_down = SlowDown(clock)
    assert slow_down.value == 1
    assert slow_down.age_seconds == float("inf")
    for ratio in (2.0, 3.0, 50.0):
        slow_down.record(0.1, 0.1 * ratio)
    assert slow_down.value == pytest.approx(3)
    clock.now += 2
    assert slow_down.value == pytest.approx(3)  # there are no newer readings
    for _ in range(2):  # readings of a canary
        slow_down.record(0.02, 0.02)
    assert slow_down.value == pytest.approx(1)
    slow_down.record(0.1, 0.9)
    clock.now += 9
    slow_down.record(0.1, 0.4)
    slow_down.record(0.1, 0.4)
    assert slow_down.value == pytest.approx(4)
    clock.now += 11
    assert slow_down.value == 1, "after ten seconds without readings it returns to 1"


def test_mean_backlog_is_a_mean_over_time() -> None:
    clock = Clock()
    backlog = Backlog(clock)
    for _ in range(1000):  # a job of 20 ms every 40 ms: the backlog falls from 20 ms to 0, then stays 0 for 20 ms
        backlog.changed(0.02, 1.0)
        clock.now += 0.02
        backlog.changed(0.0, 0.0)
        clock.now += 0.02
    assert backlog.mean_seconds == pytest.approx(0.005, rel=0.15)
    assert backlog.externality_seconds == pytest.approx(0.005, rel=0.1)  # it is idle half of the time
    clock.now += 1e7  # a long time without jobs
    assert backlog.mean_seconds == backlog.externality_seconds == 0
    backlog.changed(1e3, 1.0)
    clock.now += 1e7
    assert backlog.mean_seconds == 0


def test_devices_are_active_for_ten_seconds() -> None:
    clock = Clock()
    devices = ActiveDevices(clock)
    devices.seen(Owner("a"))
    clock.now += 6
    devices.seen(Owner("b"))
    assert devices.count == 2
    clock.now += 6
    assert devices.count == 1
    devices.seen(Owner("a"))
    assert devices.count == 2
    clock.now += 11
    assert devices.count == 0


def status(backlog: float, mean: float) -> offload_pb2.ServerStatus:
    return offload_pb2.ServerStatus(slow_down=1.5, backlog_seconds=backlog, mean_backlog_seconds=mean, active_devices=3)


def test_a_backlog_runs_down_and_then_the_mean_is_expected() -> None:
    clock = Clock()
    load = LoadFollower(clock)
    assert load.now() is None
    load.status_received(status(0.3, 0.1))
    assert load.now() == ServerLoad(1.5, pytest.approx(0.3), draining=False, devices=3)
    clock.now += 0.01
    assert load.now().backlog_seconds == pytest.approx(0.28, abs=0.02)
    clock.now += 2
    assert load.now().backlog_seconds == pytest.approx(0.1, abs=0.001)


def test_a_device_never_waits_for_itself() -> None:
    clock = Clock()
    load, mean = LoadFollower(clock), Backlog(clock)
    for _ in range(50):  # one device, whose tails of 0.2 s fill the server
        mean.changed(0.2, 1.0)
        clock.now += 0.2
        mean.changed(0.0, 0.0)
        load.reply_received(0.0, 0.2)
        load.status_received(status(0.0, mean.mean_seconds))
    assert mean.mean_seconds > 0.04
    clock.now += 0.5
    assert load.now().backlog_seconds == pytest.approx(0, abs=0.002)


@given(st.lists(st.tuples(st.floats(1e-6, 10), st.floats(1e-6, 10)), max_size=50))
def test_slow_down_is_never_below_one(readings: list[tuple[float, float]]) -> None:
    slow_down = SlowDown(Clock())
    for predicted, measured in readings:
        slow_down.record(predicted, measured)
    assert slow_down.value >= 1
