from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadpart_common.planning.plans import Plans, Point, Weights, lower_hull

amounts = st.floats(0, 10, allow_nan=False).map(lambda value: round(value, 3))


@st.composite
def plans(draw: st.DrawFn) -> list[Point]:
    count = draw(st.integers(1, 25))
    remote = [
        Point(cut, draw(amounts), draw(st.integers(0, 10_000)), draw(amounts), remote=True) for cut in range(count)
    ]
    return [*remote, Point(count, draw(amounts), 0, 0.0, remote=False)]


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(0, 2**32 - 1))
def test_no_weights_make_a_plan_win_that_the_hull_lacks(points: list[Point], seed: int) -> None:
    hull = Plans(lower_hull(points))
    everything = Plans(points)
    rng = np.random.default_rng(seed)
    for _ in range(200):
        numbers = 10.0 ** rng.uniform(-4, 4, 4) * (rng.random(4) < 0.8)
        weights = Weights(*map(float, numbers))
        best = min(everything.seconds(weights))
        assert min(hull.seconds(weights)) == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_a_plan_that_another_dominates_is_not_on_the_hull() -> None:
    good, bad = Point(0, 0.0, 100, 1.0, remote=True), Point(1, 0.5, 200, 1.0, remote=True)
    local = Point(2, 5.0, 0, 0.0, remote=False)
    assert lower_hull([good, bad, local]) == (good, local)


def test_prediction_is_the_dot_product() -> None:
    plan = Plans([Point(3, 0.010, 1000, 0.020, remote=True), Point(9, 0.1, 0, 0.0, remote=False)])
    weights = Weights(device_slow_down=2, seconds_per_byte=1e-6, server_slow_down=3, fixed_seconds=0.005)
    assert plan.seconds(weights) == pytest.approx([0.020 + 0.001 + 0.060 + 0.005, 0.2])
    assert plan.seconds(weights, batch=2) == pytest.approx([2 * (0.020 + 0.001 + 0.060) + 0.005, 0.4])


def test_a_plan_is_kept_until_another_gains_enough() -> None:
    plans = Plans([Point(0, 0.0, 1000, 0.1, remote=True), Point(5, 0.099, 0, 0.0, remote=False)])
    weights = Weights(1, 0, 1, 0)
    assert plans.choose(weights)[0].cut == 5
    assert plans.choose(weights, current=0, threshold=0.05)[0].cut == 0
    busy = Weights(1, 0, 1.2, 0)
    assert plans.choose(busy, current=0, threshold=0.05)[0].cut == 5
