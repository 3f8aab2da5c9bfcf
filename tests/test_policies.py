"""What policies choose, given plans and the state of link, server and device."""

from __future__ import annotations

import pickle
import random

import pytest

from loadpart_common.planning.plan import PlanKey, Point
from loadpart_common.planning.plans import Plans
from loadpart_device.deciding.policies import LoadAware, make_policy
from loadpart_device.deciding.state import EdgeState, World
from loadpart_device.edges.link import LinkReading
from loadpart_device.edges.load import ServerLoad
from tests.support import Clock
from tests.test_graph import chain

FAST_LINK, THIN_LINK = LinkReading(0.001, 1e-9), LinkReading(0.001, 1e-5)
LOCAL = PlanKey(5)
PLANS = Plans(
    [
        Point(PlanKey(0, "raw"), 0.0, 150_000, 0.02),
        Point(PlanKey(2, "raw"), 0.03, 10_000, 0.01),
        Point(LOCAL, 0.2, 0, 0.0),
    ]
)
IDLE = ServerLoad(1.0, 0.0)


def world(
    link: LinkReading | None = FAST_LINK, load: ServerLoad | None = IDLE, unavailable: str | None = None
) -> World:
    return World((EdgeState("edge", PLANS, link, load, unavailable),), 1.0, LOCAL, 40)


def cut_of(
    policy: str | int,
    link: LinkReading | None = FAST_LINK,
    load: ServerLoad | None = IDLE,
    unavailable: str | None = None,
) -> int:
    return make_policy(policy, chain(5)).choose(world(link, load, unavailable), 1).chosen.plan.cut


def test_policies() -> None:
    assert cut_of("load-aware") == 0
    assert cut_of("load-aware", THIN_LINK) == 2
    assert cut_of("load-aware", load=ServerLoad(100, 0)) == 5
    assert cut_of("load-aware", load=ServerLoad(1, 3)) == 5
    assert cut_of("load-aware", load=ServerLoad(1, 0, dispatch_seconds=3)) == 5
    assert cut_of("bandwidth-only", load=ServerLoad(100, 3, dispatch_seconds=3)) == 0
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
        known = world(LinkReading(0.001, 1e-9), ServerLoad(slow_down, 0))
        assert policy.choose(known, 1).chosen.plan.cut == expected, slow_down


def test_many_devices_do_not_change_plans_at_once() -> None:
    """If all 400 devices offloaded once a second, with tails of 20 ms, the load would be 800 %."""
    clock = Clock()
    fleet = [LoadAware(random.Random(seed), clock) for seed in range(400)]
    busy_load, idle_load = ServerLoad(100, 0, devices=400), ServerLoad(1, 0, devices=400)
    busy, idle = world(FAST_LINK, busy_load), world(FAST_LINK, idle_load)
    assert {policy.choose(busy, 1).chosen.plan.cut for policy in fleet} == {5}  # a first plan is no change
    clock.now += 1
    moved = sum(policy.choose(idle, 1).chosen.plan.cut == 0 for policy in fleet)
    assert moved == pytest.approx(50, abs=25)
    for _ in range(100):
        clock.now += 1
        choices = [policy.choose(idle, 1) for policy in fleet]
    assert {choice.chosen.plan.cut for choice in choices} == {0}
    alone = LoadAware(random.Random(0), clock)
    for load, expected in ((busy_load, 5), (idle_load, 0), (busy_load, 5)):
        assert alone.choose(world(FAST_LINK, load._replace(devices=1)), 1).chosen.plan.cut == expected


def test_among_many_devices_the_waiting_of_others_counts() -> None:
    crowded = ServerLoad(1.0, 0.01, draining=False, devices=1000, externality_seconds=10.0)
    assert cut_of("load-aware", load=crowded) == 5
    assert cut_of("load-aware", load=crowded._replace(devices=10)) == 0
    policy = make_policy("load-aware", chain(5))
    choice = policy.choose(world(FAST_LINK, crowded._replace(externality_seconds=0.05)), 1)
    assert choice.chosen.plan.cut == 0
    assert choice.predicted_seconds == pytest.approx(0.02 + 0.001 + 0.01, rel=0.01)  # the prediction has no externality


def test_the_paper_has_no_queue_and_folds_the_round_trip_into_the_bandwidth() -> None:
    link = LinkReading(0.001, 1e-9, naive_bytes_per_second=1e6)
    assert cut_of("paper", link, ServerLoad(1, 30)) == 2
    assert cut_of("paper", LinkReading(9.0, 1e-9, naive_bytes_per_second=1e9), ServerLoad(1, 30)) == 0
    assert cut_of("paper", link, ServerLoad(100, 0)) == 5


def test_bytes_that_go_at_once_cost_nothing() -> None:
    thin = LinkReading(0.001, 1e-5, free_bytes=150_000)
    assert cut_of("load-aware", thin) == 0


def several(*edges: tuple[str, LinkReading | None, ServerLoad | None, str | None]) -> World:
    return World(tuple(EdgeState(name, PLANS, *state) for name, *state in edges), 1.0, LOCAL, 40)


def test_the_decision_is_over_all_servers() -> None:
    busy, idle = ("busy", FAST_LINK, ServerLoad(3, 0.1), None), ("idle", FAST_LINK, IDLE, None)
    for edges in ((busy, idle), (idle, busy)):
        assert LoadAware().choose(several(*edges), 1).chosen == ("idle", PlanKey(0, "raw"))
    gone = ("idle", FAST_LINK, IDLE, "the server failed")
    assert LoadAware().choose(several(busy, gone), 1).chosen.edge == "busy"
    choice = LoadAware().choose(several(gone, ("new", None, None, None)), 1)
    assert choice.chosen == ("", LOCAL)
    assert str(choice.reason) == "local: idle: the server failed; new: the link has not been measured yet"


def test_a_server_is_kept_until_another_gains_enough() -> None:
    policy = LoadAware()
    here, there = ("here", FAST_LINK, IDLE, None), ("there", FAST_LINK, ServerLoad(1.0, 0.0005), None)
    assert policy.choose(several(there), 1).chosen.edge == "there"
    assert policy.choose(several(here, there), 1).chosen.edge == "there", "a gain of 0.5 ms is too small"
    assert policy.choose(several(here, ("there", FAST_LINK, ServerLoad(1, 1), None)), 1).chosen.edge == "here"


def test_a_choice_can_be_sent_to_another_process() -> None:
    choice = LoadAware().choose(world(), 1)
    assert str(pickle.loads(pickle.dumps(choice)).reason) == str(choice.reason)
    assert "cut 0: least of 3 plans" in str(choice.reason)
