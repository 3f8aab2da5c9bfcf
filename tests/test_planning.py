from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from loadpart_common.planning.plan import PlanKey, Point, plan_at
from loadpart_common.planning.plans import Plans, Weights
from loadpart_common.planning.winners import game_value, winning_plans, worth_building
from tests.test_graph import chain

amounts = st.floats(0, 10, allow_nan=False).map(lambda value: round(value, 3))


def remote(cut: int, device: float, nbytes: int, server: float) -> Point:
    return Point(PlanKey(cut, "raw"), device, nbytes, server)


def local(cut: int, device: float) -> Point:
    return Point(PlanKey(cut), device, 0, 0.0)


@st.composite
def plans(draw: st.DrawFn) -> list[Point]:
    count = draw(st.integers(1, 25))
    points = [remote(cut, draw(amounts), draw(st.integers(0, 10_000)), draw(amounts)) for cut in range(count)]
    return [*points, local(count, draw(amounts))]


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 2**32 - 1))
def test_no_weights_make_a_plan_win_that_was_not_kept(points: list[Point], seed: int) -> None:
    """Holds with and without bursts, and for any batch."""
    kept = Plans(winning_plans(points))
    everything = Plans(points)
    rng = np.random.default_rng(seed)
    for _ in range(300):
        numbers = 10.0 ** rng.uniform(-4, 4, 4) * (rng.random(4) < 0.8)
        free = rng.choice([0.0, rng.uniform(0, 12_000), float(rng.choice(points).uplink_bytes)])
        weights = Weights(*map(float, numbers), free_bytes=float(free))
        batch = int(rng.integers(1, 4))
        costs = everything.costs(weights, batch)
        best = min(costs)
        cost, position = everything.least(weights, batch)
        assert cost == pytest.approx(best, rel=1e-12)
        assert costs[position] == pytest.approx(best, rel=1e-12)
        assert min(kept.costs(weights, batch)) == pytest.approx(best, rel=1e-6, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 2**32 - 1), st.floats(0.005, 0.3), st.integers(0, 3))
def test_no_cut_that_is_not_built_would_gain_much(points: list[Point], seed: int, gain: float, ready: int) -> None:
    """Nor is a cut built twice, or one that gains nothing."""
    rng = np.random.default_rng(seed)
    built = [points[-1], *points[: min(ready, len(points) - 1)]]
    cuts = worth_building(points, built, gain)
    assert len(cuts) == len(set(cuts))
    assert not {point.key.cut for point in built} & set(cuts)
    kept = Plans([*built, *(point for point in points if point.key.cut in cuts)])
    everything = Plans(points)
    for _ in range(300):
        numbers = 10.0 ** rng.uniform(-4, 4, 4) * (rng.random(4) < 0.8)
        free = float(rng.choice([0.0, rng.uniform(0, 12_000), float(rng.choice(points).uplink_bytes)]))
        weights = Weights(*map(float, numbers), free_bytes=free)
        assert min(kept.costs(weights)) * (1 - gain) <= min(everything.costs(weights)) * (1 + 1e-6) + 1e-9


def test_a_cut_that_gains_next_to_nothing_is_not_built() -> None:
    whole, offload = local(3, 0.1), remote(0, 0.0, 10_000, 0.02)
    late = remote(2, 0.0999, 100, 0.00005)
    assert winning_plans([offload, late, whole]) == (offload, late, whole)
    assert worth_building([offload, late, whole], [whole], 0.02) == [0]
    assert worth_building([offload, late, whole], [whole], 0.0001) == [0, 2]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5), st.integers(1, 60), st.integers(0, 2**32 - 1), st.booleans())
def test_the_value_of_a_game_is_that_of_its_linear_programme(rows: int, columns: int, seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    payoffs = rng.uniform(-1, 1, (rows, columns))
    if ties:  # equal ratios, in which the simplex method may go round in circles
        payoffs = np.round(payoffs * 3) / 3
    bounds = [(0, None)] * rows + [(None, None)]
    solved = linprog(
        c=[0] * rows + [-1],
        A_ub=np.hstack([-payoffs.T, np.ones((columns, 1))]),
        b_ub=np.zeros(columns),
        A_eq=[[1] * rows + [0]],
        b_eq=[1],
        bounds=bounds,
    )
    assert game_value(payoffs) == pytest.approx(solved.x[-1], abs=1e-9)


def test_a_plan_that_wins_only_behind_a_burst_is_kept() -> None:
    points = [remote(0, 0.0, 100_000, 0.01), remote(1, 0.052, 55_000, 0.01), remote(2, 0.1, 1_000, 0.01), local(3, 0.3)]
    weights = Weights(1, 1e-5, 1, 0.001, free_bytes=56_000)
    kept = Plans(winning_plans(points))
    assert min(kept.costs(weights)) == pytest.approx(0.063)
    assert len(kept.points) == 4


def test_a_plan_that_another_dominates_is_not_kept() -> None:
    good, bad = remote(0, 0.0, 100, 1.0), remote(1, 0.5, 200, 1.0)
    assert winning_plans([good, bad, local(2, 5.0)]) == (good, local(2, 5.0))


def test_prediction_is_the_dot_product() -> None:
    plan = Plans([remote(3, 0.010, 1000, 0.020), local(9, 0.1)])
    weights = Weights(device_slow_down=2, seconds_per_byte=1e-6, server_slow_down=3, fixed_seconds=0.005)
    assert plan.costs(weights) == pytest.approx([0.020 + 0.001 + 0.060 + 0.005, 0.2])
    assert plan.costs(weights, batch=2) == pytest.approx([2 * (0.020 + 0.001 + 0.060) + 0.005, 0.4])


def test_what_others_wait_is_part_of_the_cost_and_not_of_the_latency() -> None:
    plan = Plans([remote(3, 0.010, 1000, 0.020), local(9, 0.1)])
    weights = Weights(1, 1e-6, 1, 0.005, externality_seconds=1.0)
    costs = plan.costs(weights)
    assert costs == pytest.approx([1.036, 0.1])
    assert [plan.latency(position, cost, weights) for position, cost in enumerate(costs)] == pytest.approx([0.036, 0.1])


def test_a_plan_says_itself_whether_it_is_local() -> None:
    graph = chain(5)
    assert plan_at(graph, 3) == PlanKey(3, "raw")
    assert not plan_at(graph, 3).is_local
    assert plan_at(graph, 5).is_local
    assert [str(plan_at(graph, cut)) for cut in (0, 5)] == ["cut 0", "local"]


def test_plans_can_be_sent_to_another_process() -> None:
    plans = Plans([remote(3, 0.010, 1000, 0.020), local(9, 0.1)])
    again = pickle.loads(pickle.dumps(plans))
    assert again.points == plans.points
    assert again.position(PlanKey(9)) == 1
