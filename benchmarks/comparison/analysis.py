"""Computes figures from the results.

The latency of an arm in a condition is a mean over rounds. It is either taken as measured or computed `by_decision`,
which removes the noise of an arm's own inferences, so that only its decisions count.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison.grid import VARIED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from benchmarks.comparison.records import Measured, Sample, Traced
    from loadpart_common.tensors import Array

_RESAMPLES = 2000
_NEAR_SECONDS, _STEP = 6.0, 1.5
_KNOWN = 0.25  # relative error up to which the rate of the link counts as known
WORSE = 0.05
"""Share by which load-aware may be slower than the better of local and offload."""


def is_fixed(arm: str) -> bool:
    """Whether an arm is a fixed plan."""
    return arm in {"local", "offload"} or arm.startswith("cut ")


def totals(samples: Iterable[Sample]) -> Array:
    """Latencies in seconds, shape (inferences,)."""
    return np.array([sample.total for sample in samples])


def by_decision(measured: Measured) -> Measured:
    """Replaces the latency of each inference by the mean of all inferences of its round with the same plan.

    The latency depends on the plan and on link and load at that moment, not on the arm that chose the plan.
    """
    seconds = np.array([totals(samples) for samples in measured.arms.values()])
    plans = np.array([[sample.plan for sample in samples] for samples in measured.arms.values()])
    arms = {}
    for (arm, samples), own_plans in zip(measured.arms.items(), plans, strict=True):
        same = plans == own_plans
        means = (seconds * same).sum(axis=0) / same.sum(axis=0)
        arms[arm] = [replace(sample, total=float(mean)) for sample, mean in zip(samples, means, strict=True)]
    return replace(measured, arms=arms)


def mean(measured: Measured, arm: str) -> float:
    """Mean latency of an arm in seconds."""
    return float(totals(measured.arms[arm]).mean())


def median(measured: Measured, arm: str) -> tuple[float, float, float]:
    """Median latency of an arm in seconds, and the ends of its 95 % confidence interval."""
    seconds = totals(measured.arms[arm])
    low, high = interval(seconds, np.median)
    return float(np.median(seconds)), low, high


def oracle(measured: Measured) -> str:
    """The best fixed cut of a condition."""
    return min(filter(is_fixed, measured.arms), key=lambda arm: mean(measured, arm))


def reduction(measured: Measured, baseline: str) -> float:
    """Share of another arm's mean latency that load-aware saves."""
    return 1 - mean(measured, "load-aware") / mean(measured, baseline)


def regret(measured: Measured) -> float:
    """Share by which load-aware is slower than the best fixed cut; negative where it is quicker."""
    return mean(measured, "load-aware") / mean(measured, oracle(measured)) - 1


def varied(results: Sequence[Measured]) -> list[Measured]:
    """The conditions in which the level of the load is at least `VARIED`."""
    return [each for each in results if each.condition.load.level >= VARIED]


def interval(values: Array, statistic: Callable[..., Array]) -> tuple[float, float]:
    """The 95 % confidence interval of a statistic, by the bootstrap (percentiles; Efron 1979)."""
    rng = np.random.default_rng(0)
    resampled = statistic(rng.choice(values, (_RESAMPLES, len(values))), axis=1)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return float(low), float(high)


def ratio_interval(measured: Measured, arm: str, baseline: str) -> tuple[float, float]:
    """The 95 % confidence interval of the ratio of two arms' mean latencies; rounds are resampled as pairs."""
    pairs = np.array([totals(measured.arms[each]) for each in (arm, baseline)])
    rng = np.random.default_rng(0)
    rounds = rng.integers(0, pairs.shape[1], (_RESAMPLES, pairs.shape[1]))
    resampled = pairs[:, rounds].mean(axis=2)
    low, high = np.percentile(resampled[0] / resampled[1], (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Loss:
    """A condition in which load-aware is slower than the better of local and offload.

    Attributes:
        measured: The condition.
        better: The quicker one of local and offload.
        share: By what share load-aware is slower.
        low: Lower end of the share's 95 % confidence interval.
        high: Upper end of it.
        reason: A summary of load-aware's decisions.
    """

    measured: Measured
    better: str
    share: float
    low: float
    high: float
    reason: str


def losses(results: Sequence[Measured]) -> list[Loss]:
    """The losses by more than `WORSE`, the largest first."""
    found = []
    for measured in results:
        better = min(("local", "offload"), key=lambda arm: mean(measured, arm))
        excess = mean(measured, "load-aware") / mean(measured, better) - 1
        if excess > WORSE:
            low, high = (edge - 1 for edge in ratio_interval(measured, "load-aware", better))
            found.append(Loss(measured, better, excess, low, high, reason(measured, better)))
    return sorted(found, key=lambda loss: -loss.share)


def reason(measured: Measured, better: str) -> str:
    """Summarises load-aware's decisions in a condition where a fixed cut was better."""
    samples = measured.arms["load-aware"]
    plans = Counter(sample.plan for sample in samples)
    best = measured.arms[better][0].plan
    errors = [sample.predicted / sample.total for sample in samples if sample.predicted]
    predicted = f"predicted over measured {statistics.median(errors):.2f}" if errors else "nothing predicted"
    if plans[best] == len(samples):
        return f"took the same plan each time: noise; {predicted}"
    taken = ", ".join(f"{plan} ({count})" for plan, count in sorted(plans.items()))
    other = totals(sample for sample in samples if sample.plan != best).mean()
    gap = other / mean(measured, better) - 1
    return f"took cuts {taken}; the others' inferences {gap:+.0%}; {predicted}"


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How soon load-aware adapted to a change of link and load in a trace.

    Attributes:
        at: Time of the change, in seconds since the trace began.
        change: Link and load after the change.
        best: The best fixed cut after the change.
        costs: Latencies of the cuts that load-aware took, in order, relative to that of the best one.
        blind: How many of these inferences began before the change was observable. The first offloaded inference
            reveals a change, by its transfer or by the server's answer. While the device computes locally with a wrong
            estimate of the link, only a probe reveals it.
    """

    at: float
    change: str
    best: str
    costs: list[float]
    blind: int

    @property
    def second(self) -> float:
        """Cost of the second inference after the change became observable."""
        return self.costs[self.blind + 1]


def adaptations(traced: Traced) -> list[Adaptation]:
    """How load-aware follows the changes of a trace that were observable for at least two inferences.

    The cost of a decision is the median latency of its cut, run as a fixed one in the same phase, relative to that of
    the best one. So the noise of single inferences does not count.
    """
    found = []
    ends = [*(at for at, _, _ in traced.world[2:]), float("inf")]
    for (at, megabits, load), end in zip(traced.world[1:], ends, strict=False):
        phase = [moment for moment in traced.moments if at <= moment.at < end]
        fixed = {arm for moment in phase if is_fixed(arm := moment.arm)}
        seconds = {arm: statistics.median(each.sample.total for each in phase if each.arm == arm) for arm in fixed}
        plans = {moment.sample.plan: moment.arm for moment in phase if moment.arm in fixed}
        decisions = [moment.sample for moment in phase if moment.arm == "load-aware"]
        blind = _blind(decisions, traced.whole, megabits)
        if blind + 1 < len(decisions) and all(sample.plan in plans for sample in decisions):
            best = min(seconds, key=seconds.__getitem__)
            costs = [seconds[plans[sample.plan]] / seconds[best] for sample in decisions]
            found.append(Adaptation(at, f"{megabits:.3g} Mbit/s, {load}", best, costs, blind))
    return found


def _blind(decisions: Sequence[Sample], whole: int, megabits: float) -> int:
    """How many inferences began before a change was observable, the link now being at `megabits`."""
    for number, sample in enumerate(decisions[1:], 1):
        known = sample.megabits is not None and abs(sample.megabits / megabits - 1) < _KNOWN
        if known or decisions[number - 1].cut < whole:
            return number
    return len(decisions)


def best_around(traced: Traced, at: float) -> float:
    """Median latency in seconds of the best fixed cut near a moment of a trace, not beyond a step of link or load."""
    first, last = at - _NEAR_SECONDS, at + _NEAR_SECONDS
    for (_, before, load_before), (changed, after, load) in pairwise(traced.world):
        if load != load_before or not 1 / _STEP < after / before < _STEP:
            first, last = (max(first, changed), last) if changed <= at else (first, min(last, changed))
    near: dict[str, list[float]] = defaultdict(list)
    for moment in traced.moments:
        if is_fixed(moment.arm) and first <= moment.at < last:
            near[moment.arm].append(moment.sample.total)
    return min((statistics.median(each) for each in near.values()), default=float("nan"))
