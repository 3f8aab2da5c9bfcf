"""What a device may send, compared: raw tensors only, codecs that lose nothing, and 8-bit activations besides."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from rich.markdown import Markdown

from benchmarks.comparison.analysis import by_decision
from loadpart_common.codecs.registry import CODECS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from benchmarks.comparison.records import Measured, Results

_LOSSLESS = [name for name in CODECS if CODECS[name].is_lossless]
ARMS: Mapping[str, Mapping[str, Any]] = {
    "raw": {"codecs": []},
    "lossless": {"codecs": _LOSSLESS},
    "with q8z": {"codecs": [*_LOSSLESS, "q8z"]},
}

MOST_SLOWER = 0.02
LEAST_BEST_GAIN = 0.25
LEAST_SPLIT_GAIN = 0.05
LEAST_SPLIT_SHARE = 0.25
SMALL = ("alexnet", "squeezenet", "efficientnet-lite0")
"""Networks whose activations are small enough for a true split to pay."""


def gain(measured: Measured, arm: str, over: str) -> float:
    """Share of the latency that an arm saves over another one: the median over the rounds, which share a photograph.

    Arms that ran the same plan in a round count as equally quick.
    """
    arms = by_decision(measured).arms
    ratios = [one.total / other.total for one, other in zip(arms[arm], arms[over], strict=True)]
    return 1 - statistics.median(ratios)


def splits(measured: Measured, arm: str) -> float:
    """Share of an arm's inferences that ran a true split."""
    return statistics.mean(0 < sample.cut < measured.whole for sample in measured.arms[arm])


def usual_plan(measured: Measured, arm: str) -> str:
    """The plan that an arm ran most often."""
    plan = statistics.mode(sample.plan for sample in measured.arms[arm])
    return "local" if plan == str(measured.whole) else plan


def show(results: Results, console: Console) -> None:
    """Prints a row for each condition, and what is wanted."""
    console.print(Markdown("\n".join(table(results))))
    for line in summary(results):
        console.print(line, soft_wrap=True)


def table(results: Results) -> list[str]:
    """The conditions as a table in Markdown."""
    header = (
        "condition",
        *(f"{arm}, ms" for arm in ARMS),
        *(f"plan, {arm}" for arm in ARMS),
        "lossless gains",
        "q8z gains more",
    )
    lines = [header, ("---",) * len(header)]
    for each in results.measured:
        medians = [statistics.median(sample.total for sample in each.arms[arm]) for arm in ARMS]
        lines.append((
            str(each.condition), *(f"{seconds * 1e3:.0f}" for seconds in medians),
            *(usual_plan(each, arm) for arm in ARMS), f"{gain(each, 'lossless', 'raw'):.1%}",
            f"{gain(each, 'with q8z', 'lossless'):.1%}",
        ))  # fmt: skip
    return [f"| {' | '.join(line)} |" for line in lines]


def summary(results: Results) -> list[str]:
    """The figures that are wanted, in words."""
    gains = [gain(each, "lossless", "raw") for each in results.measured]
    small = [each for each in results.measured if each.condition.network in SMALL]
    split = [each for each in small if splits(each, "with q8z") > 0.5]
    lines = [
        f"lossless codecs against raw only, {len(gains)} conditions: mean {statistics.mean(gains):.1%}, best "
        f"{max(gains):.1%} (at least {LEAST_BEST_GAIN:.0%} wanted), worst {min(gains):.1%} (at least "
        f"{-MOST_SLOWER:.0%} wanted)",
    ]
    if split:
        more = statistics.mean(gain(each, "with q8z", "lossless") for each in split)
        lines.append(
            f"8-bit activations, {', '.join(SMALL)}: a true split in {len(split)} of {len(small)} conditions "
            f"({len(split) / len(small):.0%}; at least {LEAST_SPLIT_SHARE:.0%} wanted), where it gains {more:.1%} on "
            f"average over lossless codecs alone (at least {LEAST_SPLIT_GAIN:.0%} wanted)"
        )
    return lines
