"""What policies choose, given plans and what is known of the world."""

from __future__ import annotations

import random

import pytest

from loadpart_common.planning.plans import Plans, Point
from loadpart_device.deciding.policies import LoadAware, ServerLoad, World, make_policy
from loadpart_device.edges.link import LinkReading
from tests.support import Clock
from tests.test_graph import chain

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


def test_many_devices_do_not_change_plans_at_once() -> None:
    """400 devices that infer once a second would be eight times as much as a server can do that takes 20 ms."""
    clock = Clock()
    fleet = [LoadAware(5, 40, random.Random(seed), clock) for seed in range(400)]
    busy = World(FAST_LINK, ServerLoad(100, 0, draining=False, devices=400), 1.0, None)
    idle = World(FAST_LINK, ServerLoad(1, 0, draining=False, devices=400), 1.0, None)
    assert {policy.choose(PLANS, busy, 1).cut for policy in fleet} == {5}  # the first plan is nobody's change
    clock.now += 1
    moved = sum(policy.choose(PLANS, idle, 1).cut == 0 for policy in fleet)
    assert moved == pytest.approx(50, abs=25)
    for _ in range(100):
        clock.now += 1
        choices = [policy.choose(PLANS, idle, 1) for policy in fleet]
    assert {choice.cut for choice in choices} == {0}
    alone = LoadAware(5, 40, random.Random(0), clock)
    for load, expected in ((busy.load, 5), (idle.load, 0), (busy.load, 5)):
        assert load is not None
        assert alone.choose(PLANS, busy._replace(load=load._replace(devices=1)), 1).cut == expected


def test_among_many_devices_the_waiting_of_others_counts() -> None:
    crowded = ServerLoad(1.0, 0.01, draining=False, devices=1000, externality_seconds=10.0)
    assert cut_of("load-aware", load=crowded) == 5
    assert cut_of("load-aware", load=crowded._replace(devices=10)) == 0
    policy = make_policy("load-aware", chain(5))
    world = World(FAST_LINK, crowded._replace(externality_seconds=0.05), 1.0, None)
    choice = policy.choose(PLANS, world, 1)
    assert choice.cut == 0
    assert choice.predicted_seconds == pytest.approx(0.02 + 0.001 + 0.01, rel=0.01)  # its own latency only


def test_the_paper_has_no_queue_and_folds_the_round_trip_into_the_bandwidth() -> None:
    link = LinkReading(0.001, 1e-9, naive_bytes_per_second=1e6)
    assert cut_of("paper", link, ServerLoad(1, 30)) == 2
    assert cut_of("paper", LinkReading(9.0, 1e-9, naive_bytes_per_second=1e9), ServerLoad(1, 30)) == 0
    assert cut_of("paper", link, ServerLoad(100, 0)) == 5


def test_bytes_that_go_at_once_cost_nothing() -> None:
    thin = LinkReading(0.001, 1e-5, free_bytes=150_000)
    assert cut_of("load-aware", thin) == 0
