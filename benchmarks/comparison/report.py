"""The report, written from a file of results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.comparison import analysis, pictures
from benchmarks.comparison.grid import NETWORKS, VARIED
from benchmarks.comparison.records import read

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.comparison.records import Measured, Results, Traced

REPORT, FOLDER, RESULTS = "benchmarks.md", "benchmarks", "results.jsonl"
WANTED_MEAN, WANTED_BEST, GOAL_MEAN, GOAL_BEST = 0.142, 0.323, 0.25, 0.60
WANTED_REGRET, WANTED_REGRET_95 = 0.05, 0.15
ADAPTED = 1.05

_SHOWN = 8
_KINDS_OF_LATENCY = (
    "The latency of a condition is a mean over rounds, in each of which every policy and every fixed cut runs once. "
    "What an inference takes depends on its cut and on the world at that moment, not on who chose the cut. So “by "
    "decision” counts in each round the mean over all inferences that took the cut which the policy took: two policies "
    "that take the same cut are equally quick. “Own inferences only” is the plain mean, with all its noise: a slow "
    "device that computes alone takes a third longer now and then, and there may be a handful of rounds only."
)
_FINDINGS = Path(__file__).with_name("findings.md")


def write(output: Path) -> str:
    """Writes the report and the pictures of `OUTPUT/benchmarks/results.jsonl`; returns its figures as text.

    Raises:
        ValueError: The file is not one of results.
    """
    results = read(output / FOLDER / RESULTS)
    decided = replace(results, measured=[analysis.by_decision(each) for each in results.measured])
    drawn = pictures.draw(decided, output / FOLDER)
    headline = _headline(results, decided)
    parts = [
        "# Benchmarks",
        "Written by `make bench`; do not edit. Raw results, a line for each condition and trace: "
        f"[{RESULTS}]({FOLDER}/{RESULTS}).",
        "## Figures",
        headline,
        _KINDS_OF_LATENCY,
        "## How it was measured",
        _how(results),
        *(f"## {title}\n\n![{title}]({FOLDER}/{name})" for name, title in drawn.items()),
        *_tables(results, decided),
        "## Losses that were found and mended",
        _FINDINGS.read_text(encoding="utf-8").strip(),
    ]
    (output / REPORT).write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return headline


def _how(results: Results) -> str:
    return _table(("", ""), ((name, str(value)) for name, value in results.how.items()))


def _headline(results: Results, decided: Results) -> str:
    rows: list[tuple[str, ...]] = []
    if results.measured:
        figures, plain = _figures(decided.measured), _figures(results.measured)
        rows += [
            (name, value, other, wanted) for (name, value, wanted), (_, other, _) in zip(figures, plain, strict=True)
        ]
    followed = [each for traced in results.traced for each in analysis.adaptations(traced)]
    if followed:
        adapted = sum(each.second <= ADAPTED for each in followed)
        rows.append(
            (
                "changes in traces after which the cut is within 5 % of the best one by the second inference that "
                "could know",
                f"{adapted} of {len(followed)}",
                "",
                "all",
            )
        )
    return _table(("figure", "by decision", "own inferences only", "wanted"), rows)


def _figures(measured: Sequence[Measured]) -> list[tuple[str, str, str]]:
    regrets = np.array([analysis.regret(each) for each in measured])
    gains = [(name, _gain(own)) for name in NETWORKS if (own := _of(measured, name))]
    return [
        *_reductions(f"load of {_share(VARIED)} and more", analysis.varied(measured), wanted=True),
        *_reductions("all loads", measured, wanted=False),
        ("regret against the best fixed cut, mean", _share(regrets.mean()), f"at most {_share(WANTED_REGRET)}"),
        ("95th percentile", _share(np.percentile(regrets, 95)), f"at most {_share(WANTED_REGRET_95)}"),
        (
            f"conditions where it is over {_share(analysis.WORSE)} slower than the better of local and offload",
            f"{len(analysis.losses(measured))} of {len(measured)}",
            "0",
        ),
        ("gain over `paper`, mean", _share(_gain(measured)), "above 0"),
        ("by network", ", ".join(f"{name} {_share(gain)}" for name, gain in gains), "none below 0"),
    ]


def _reductions(what: str, measured: Sequence[Measured], *, wanted: bool) -> list[tuple[str, str, str]]:
    if not measured:
        return []
    gains = np.array([analysis.reduction(each, "bandwidth-only") for each in measured])
    low, high = analysis.interval(gains, np.mean)
    best = measured[int(gains.argmax())]
    return [
        (
            f"latency saved against bandwidth-only, {what}: mean of {len(gains)} conditions",
            f"{_share(gains.mean())} (95 % interval {_share(low)} to {_share(high)})",
            f"at least {_share(WANTED_MEAN)}; goal {_share(GOAL_MEAN)}" if wanted else "",
        ),
        (
            f"{what}: best condition",
            f"{_share(gains.max())} ({best.condition})",
            f"at least {_share(WANTED_BEST)}; goal {_share(GOAL_BEST)}" if wanted else "",
        ),
    ]


def _gain(measured: Sequence[Measured]) -> float:
    """Share of the mean latency that load-aware saves against the paper's policy."""
    ours, theirs = (sum(analysis.mean(each, arm) for each in measured) for arm in ("load-aware", "paper"))
    return 1 - ours / theirs


def _of(measured: Sequence[Measured], network: str) -> list[Measured]:
    return [each for each in measured if each.condition.network == network]


def _tables(results: Results, decided: Results) -> Iterable[str]:
    if results.measured:
        yield "## Every condition"
        yield (
            "Median latency in ms with its 95 % confidence interval (bootstrap), and for load-aware the regret of the "
            "mean. “server” is the slow-down and the mean backlog that the server told."
        )
        yield _conditions(results.measured, decided.measured)
        yield "## Losses to the better of local and offload"
        yield _losses(decided.measured)
    for traced in results.traced:
        yield f"## Trace “{traced.name}”"
        yield _trace_means(traced)
        if followed := analysis.adaptations(traced):
            yield (
                "After each change: the latency of the cuts that load-aware took, over that of the best fixed one. In "
                "brackets the inferences that began before it could know."
            )
            yield _adaptations(followed)


def _conditions(measured: Sequence[Measured], decided: Sequence[Measured]) -> str:
    arms = ("local", "offload", "bandwidth-only", "paper", "load-aware")
    header = ("network", "Mbit/s", "device", "load", "server", *arms, "best fixed", "regret", "rounds")
    return _table(header, (_condition(*each, arms) for each in zip(measured, decided, strict=True)))


def _condition(measured: Measured, decided: Measured, arms: Sequence[str]) -> tuple[str, ...]:
    condition, best = measured.condition, analysis.oracle(decided)
    cells = []
    for arm in (*arms, best):
        middle, low, high = (1e3 * seconds for seconds in analysis.median(measured, arm))
        cells.append(f"{middle:.0f} ({low:.0f} to {high:.0f})")
    cells[-1] = f"{best} {cells[-1]}"
    return (
        condition.network, str(condition.megabits), f"{measured.device_factor:.1f}x", str(condition.load),
        f"{measured.slow_down:.1f}x, {measured.backlog_seconds * 1e3:.0f} ms", *cells,
        _share(analysis.regret(decided)), str(len(measured.arms["load-aware"])),
    )  # fmt: skip


def _losses(measured: Sequence[Measured]) -> str:
    found = analysis.losses(measured)
    if not found:
        return f"None above {_share(analysis.WORSE)}."
    rows = [
        (
            str(loss.measured.condition),
            loss.better,
            _share(loss.share),
            f"{_share(loss.low)} to {_share(loss.high)}",
            loss.reason,
        )
        for loss in found
    ]
    return _table(("condition", "better", "slower by", "95 % interval", "what the decisions say"), rows)


def _adaptations(followed: Sequence[analysis.Adaptation]) -> str:
    rows = []
    for each in followed:
        costs = [f"{cost:.2f}" for cost in each.costs[: max(_SHOWN, each.blind + 2)]]
        blind, rest = ", ".join(costs[: each.blind]), ", ".join(costs[each.blind :])
        rows.append((f"{each.at:.0f}", each.change, each.best, f"({blind}) {rest}"))
    return _table(("seconds", "from then on", "best fixed cut", "inferences"), rows)


def _trace_means(traced: Traced) -> str:
    arms = sorted({moment.arm for moment in traced.moments})
    seconds = {arm: analysis.totals(each.sample for each in traced.moments if each.arm == arm) for arm in arms}
    rows = [
        (arm, f"{each.mean() * 1e3:.0f}", f"{np.median(each) * 1e3:.0f}", str(len(each)))
        for arm, each in seconds.items()
    ]
    return _table(("policy or cut", "mean latency, ms", "median", "inferences"), rows)


def _share(value: float) -> str:
    return f"{value:.1%}".replace("%", " %")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
