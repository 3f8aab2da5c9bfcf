"""`plan` names the plan that an inference takes under the same conditions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadpart_common.latency.curves import Curves
from loadpart_common.latency.model import shipped_model
from loadpart_common.planning.plan import Point, local_plan, plan_at, reply_bytes
from loadpart_common.planning.plans import Plans
from loadpart_common.planning.winners import winning_plans
from loadpart_device.deciding.explain import Network, State, View, plan_costs
from loadpart_device.deciding.policies import LoadAware
from loadpart_device.deciding.state import EdgeState, World
from loadpart_device.edges.link import LinkReading
from loadpart_device.edges.load import ServerLoad
from tests.test_graph import chain

GRAPH = chain(12)


def network(seed: int) -> Network:
    """A network whose cuts cost and carry anything."""
    rng = np.random.default_rng(seed)
    heads, tails = np.cumsum(rng.exponential(0.01, 13)), np.cumsum(rng.exponential(0.003, 13))[::-1]
    remote = [
        Point(plan_at(GRAPH, cut), float(heads[cut]), int(rng.integers(1, 200_000)), float(tails[cut]))
        for cut in range(12)
    ]
    return Network(
        "random", "edge", GRAPH, (*remote, Point(local_plan(GRAPH), float(heads[12]), 0, 0.0)), "drawn", {}, None, None
    )


links = st.builds(
    LinkReading,
    round_trip_seconds=st.floats(0, 0.1),
    seconds_per_byte=st.floats(1e-9, 1e-4),
    free_bytes=st.one_of(st.just(0.0), st.floats(0, 300_000)),
    down_seconds_per_byte=st.floats(1e-9, 1e-4),
    down_free_bytes=st.floats(0, 300_000),
)
loads = st.builds(
    ServerLoad,
    slow_down=st.floats(1, 50),
    backlog_seconds=st.floats(0, 1),
    devices=st.integers(1, 2000),
    externality_seconds=st.floats(0, 5),
    dispatch_seconds=st.floats(0, 0.1),  # statuses with what is not finite are ignored when they come
)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 1000), links, loads, st.floats(1, 20))
def test_the_plan_that_is_explained_is_the_one_that_is_taken(
    seed: int, link: LinkReading, load: ServerLoad, device_slow_down: float
) -> None:
    drawn = network(seed)
    costs = plan_costs([View(drawn, State(link, load, device_slow_down))])
    kept = Plans(winning_plans(drawn.points))
    world = World((EdgeState("edge", kept, link, load, None),), device_slow_down, local_plan(GRAPH), reply_bytes(GRAPH))
    choice = LoadAware().choose(world, 1)
    (chosen,) = (cost for cost in costs if cost.chosen)
    (taken,) = (cost for cost in costs if cost.plan == choice.chosen.plan)
    best = chosen.total_seconds + chosen.externality_seconds
    assert taken.total_seconds + taken.externality_seconds == pytest.approx(best, rel=1e-6, abs=1e-12)
    assert choice.predicted_seconds == pytest.approx(taken.total_seconds)
    assert taken.can_win


def test_the_parts_of_a_cost_add_up() -> None:
    curves = Curves(GRAPH, shipped_model())
    heads = curves.head_seconds({})
    plans = [Point(plan_at(GRAPH, 3), 0.01, 10_000, 0.02), Point(local_plan(GRAPH), float(heads[-1]), 0, 0.0)]
    drawn = Network("two plans", "edge", GRAPH, tuple(plans), "given", {}, None, None)
    link = LinkReading(0.002, 1e-6, free_bytes=4000, down_seconds_per_byte=1e-6)
    remote, local = plan_costs([View(drawn, State(link, ServerLoad(3.0, 0.005), 2.0))])
    assert remote.device_seconds == pytest.approx(0.02)
    assert remote.network_seconds == pytest.approx(0.002 + 6000e-6 + 16e-6)
    assert remote.queue_seconds == pytest.approx(0.005)
    assert remote.server_seconds == pytest.approx(0.06)
    assert remote.total_seconds == pytest.approx(0.02 + 0.008016 + 0.005 + 0.06)
    assert (local.network_seconds, local.queue_seconds, local.server_seconds) == (0, 0, 0)
    assert local.chosen
