"""Figures of what was measured.

The latency of an arm in a condition is a mean over rounds. It is taken as measured, or `by_decision`: so that an arm
answers for its decisions only, and not for the noise of its own inferences.
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
_KNOWN = 0.25  # by which a reading of the link may be off
WORSE = 0.05
"""Share by which load-aware may be slower than the better of local and offload."""


def is_fixed(arm: str) -> bool:
    """Whether an arm is a fixed cut."""
    return arm in {"local", "offload"} or arm.startswith("cut ")


def totals(samples: Iterable[Sample]) -> Array:
    """Latencies in seconds, shape (inferences,)."""
    return np.array([sample.total for sample in samples])


def by_decision(measured: Measured) -> Measured:
    """The same with the latency of each inference replaced by the mean of all in its round that took the same cut.

    What an inference takes depends on its cut and on the world at that moment, not on who chose the cut.
    """
    seconds = np.array([totals(samples) for samples in measured.arms.values()])
    cuts = np.array([[sample.cut for sample in samples] for samples in measured.arms.values()])
    arms = {}
    for (arm, samples), own_cuts in zip(measured.arms.items(), cuts, strict=True):
        same = cuts == own_cuts
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
    """By what share load-aware is quicker than another arm."""
    return 1 - mean(measured, "load-aware") / mean(measured, baseline)


def regret(measured: Measured) -> float:
    """By what share load-aware is slower than the best fixed cut; below 0 where it is quicker."""
    return mean(measured, "load-aware") / mean(measured, oracle(measured)) - 1


def varied(results: Sequence[Measured]) -> list[Measured]:
    """The conditions in which the server is loaded enough to count."""
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
        better: That one.
        share: By how much.
        low: Least share of the 95 % confidence interval.
        high: Largest share of it.
        reason: What the decisions say.
    """

    measured: Measured
    better: str
    share: float
    low: float
    high: float
    reason: str


def losses(results: Sequence[Measured]) -> list[Loss]:
    """All of them where it is by more than `WORSE`, the largest first."""
    found = []
    for measured in results:
        better = min(("local", "offload"), key=lambda arm: mean(measured, arm))
        excess = mean(measured, "load-aware") / mean(measured, better) - 1
        if excess > WORSE:
            low, high = (edge - 1 for edge in ratio_interval(measured, "load-aware", better))
            found.append(Loss(measured, better, excess, low, high, reason(measured, better)))
    return sorted(found, key=lambda loss: -loss.share)


def reason(measured: Measured, better: str) -> str:
    """What load-aware's decisions were like in a condition where a fixed cut was better."""
    samples = measured.arms["load-aware"]
    cuts = Counter(sample.cut for sample in samples)
    best_cut = measured.arms[better][0].cut
    errors = [sample.predicted / sample.total for sample in samples if sample.predicted]
    predicted = f"predicted over measured {statistics.median(errors):.2f}" if errors else "nothing predicted"
    if cuts[best_cut] == len(samples):
        return f"took the same cut each time: noise; {predicted}"
    taken = ", ".join(f"{cut} ({count})" for cut, count in sorted(cuts.items()))
    other = totals(sample for sample in samples if sample.cut != best_cut).mean()
    gap = other / mean(measured, better) - 1
    return f"took cuts {taken}; the others' inferences {gap:+.0%}; {predicted}"


@dataclass(frozen=True, slots=True)
class Adaptation:
    """How soon load-aware had adapted to a change of the world in a trace.

    Attributes:
        at: When the change was, in seconds since the trace began.
        change: What is so from then on.
        best: The best fixed cut from then on.
        costs: What the cuts that it took cost, in order, over the best one's latency.
        blind: How many of these inferences began before it could have known: the first, whose transfer or the server's
            answer to it tells; where it ran alone and took the link for another one, all until a probe had told.
    """

    at: float
    change: str
    best: str
    costs: list[float]
    blind: int

    @property
    def second(self) -> float:
        """Cost of the second inference after the change was observable."""
        return self.costs[self.blind + 1]


def adaptations(traced: Traced) -> list[Adaptation]:
    """How load-aware follows the changes of a trace after which there was time for a second inference that could know.

    The cost of a decision is the median latency of its cut, run as a fixed one in the same phase, over that of the best
    one: so the noise of a single inference does not count.
    """
    found = []
    ends = [*(at for at, _, _ in traced.world[2:]), float("inf")]
    for (at, megabits, load), end in zip(traced.world[1:], ends, strict=False):
        phase = [moment for moment in traced.moments if at <= moment.at < end]
        fixed = {arm for moment in phase if is_fixed(arm := moment.arm)}
        seconds = {arm: statistics.median(each.sample.total for each in phase if each.arm == arm) for arm in fixed}
        cuts = {moment.sample.cut: moment.arm for moment in phase if moment.arm in fixed}
        decisions = [moment.sample for moment in phase if moment.arm == "load-aware"]
        blind = _blind(decisions, traced.whole, megabits)
        if blind + 1 < len(decisions) and all(sample.cut in cuts for sample in decisions):
            best = min(seconds, key=seconds.__getitem__)
            costs = [seconds[cuts[sample.cut]] / seconds[best] for sample in decisions]
            found.append(Adaptation(at, f"{megabits:.3g} Mbit/s, {load}", best, costs, blind))
    return found


def _blind(decisions: Sequence[Sample], whole: int, megabits: float) -> int:
    """How many inferences began before it could be known how the world is, the link at so many Mbit/s."""
    for number, sample in enumerate(decisions[1:], 1):
        known = sample.megabits is not None and abs(sample.megabits / megabits - 1) < _KNOWN
        if known or decisions[number - 1].cut < whole:
            return number
    return len(decisions)


def best_around(traced: Traced, at: float) -> float:
    """Median latency in seconds of the best fixed cut around a moment of a trace, no step of the world between."""
    first, last = at - _NEAR_SECONDS, at + _NEAR_SECONDS
    for (_, before, load_before), (changed, after, load) in pairwise(traced.world):
        if load != load_before or not 1 / _STEP < after / before < _STEP:
            first, last = (max(first, changed), last) if changed <= at else (first, min(last, changed))
    near: dict[str, list[float]] = defaultdict(list)
    for moment in traced.moments:
        if is_fixed(moment.arm) and first <= moment.at < last:
            near[moment.arm].append(moment.sample.total)
    return min((statistics.median(each) for each in near.values()), default=float("nan"))
