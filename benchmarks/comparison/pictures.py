"""Pictures of the results, readable in print and with colour blindness (colours of Okabe and Ito 2008)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.comparison import analysis
from benchmarks.comparison.grid import LEVELS, MEGABITS, NETWORKS, SOURCES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.comparison.records import Measured, Results, Traced

# Arm: colour, marker, line.
_STYLES = {
    "local": ("#999999", "s", ":"),
    "offload": ("#56B4E9", "v", ":"),
    "bandwidth-only": ("#E69F00", "^", "--"),
    "paper": ("#CC79A7", "D", "-."),
    "load-aware": ("#0072B2", "o", "-"),
    "oracle": ("#000000", "x", "-"),
}
_TICKS = [f"{level:.0%}" if level else "idle" for level in LEVELS]

mpl.rcParams.update({"svg.hashsalt": "loadpart", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3})


def draw(results: Results, folder: Path) -> dict[str, str]:
    """Draws a picture of each kind for which there are results.

    Returns:
        Titles of the pictures, by the names of their files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    if results.measured:
        for name, title, picture in (
            ("latency-bandwidth", "Latency against bandwidth, by network", _latency_bandwidth),
            ("latency-load", "Latency against load, as a share of the best fixed cut's", _latency_load),
            ("gain", "Gain over bandwidth-only", _gain),
        ):
            _save(picture(results.measured), folder / f"{name}.svg")
            drawn[f"{name}.svg"] = title
    for traced in results.traced:
        name = f"trace-{traced.name.replace(' ', '-')}.svg"
        _save(_trace(traced), folder / name)
        drawn[name] = f"Trace “{traced.name}”: the world, latency, and the cut, over time"
    return drawn


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})


def _seconds(measured: Measured, arm: str) -> float:
    return analysis.mean(measured, analysis.oracle(measured) if arm == "oracle" else arm)


def _latency_bandwidth(results: Sequence[Measured]) -> Figure:
    """A panel for each network; a bandwidth with several loads is drawn as the geometric mean over these."""
    networks = [name for name in NETWORKS if any(each.condition.network == name for each in results)]
    rows, columns = (2, 3) if len(networks) > 3 else (1, len(networks))
    figure = Figure(figsize=(4.4 * columns, 3.75 * rows), layout="constrained")
    for network, axes in zip(networks, figure.subplots(rows, columns, squeeze=False).flat, strict=False):
        own = [each for each in results if each.condition.network == network]
        for arm, (colour, marker, line) in _STYLES.items():
            rates = [rate for rate in MEGABITS if any(each.condition.megabits == rate for each in own)]
            latencies = [
                _geometric([_seconds(each, arm) for each in own if each.condition.megabits == rate]) for rate in rates
            ]
            axes.plot(
                rates, np.array(latencies) * 1e3, color=colour, marker=marker, linestyle=line, label=arm, linewidth=1.4,
                markersize=9 if arm == "oracle" else 6, fillstyle="none" if arm != "load-aware" else "full",
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        _logarithmic(axes.yaxis)
        axes.set_xticks(MEGABITS, [_rate_tick(own, rate) for rate in MEGABITS], fontsize=7)
        axes.set_title(network)
        axes.set_ylabel("mean latency, ms")
    figure.supxlabel("bandwidth, Mbit/s; below it load and slow-down of the device, where there is one condition only")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(_STYLES))
    return figure


def _rate_tick(own: Sequence[Measured], rate: int) -> str:
    here = [each.condition for each in own if each.condition.megabits == rate]
    if len(here) != 1:
        return str(rate)
    load = here[0].load
    source = load.source.replace("clients", "others") if load.level else ""
    return f"{rate}\n{source}\n{_TICKS[LEVELS.index(load.level)]}, {here[0].slow_down}x"


def _geometric(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values)))) if values else float("nan")


def _latency_load(results: Sequence[Measured]) -> Figure:
    """Latency of each policy relative to that of the best fixed cut, by level, for each source of load."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    for source, axes in zip(SOURCES, figure.subplots(1, 2, sharey=True), strict=True):
        for shift, (arm, (colour, marker, line)) in enumerate(list(_STYLES.items())[:-1]):
            places, middles, lows, highs = [], [], [], []
            for place, level in enumerate(LEVELS):
                here = [
                    each for each in results
                    if each.condition.load.level == level and (each.condition.load.source == source or not level)
                ]  # fmt: skip
                if here:
                    ratios = np.array([np.log(_seconds(each, arm) / _seconds(each, "oracle")) for each in here])
                    low, high = analysis.interval(ratios, np.mean)
                    places.append(place + 0.08 * (shift - 2))
                    middles.append(np.exp(ratios.mean()))
                    lows.append(middles[-1] - np.exp(low))
                    highs.append(np.exp(high) - middles[-1])
            axes.errorbar(
                places, middles, [lows, highs], color=colour, marker=marker, linestyle=line, label=arm, capsize=2,
                linewidth=1.4, fillstyle="none" if arm != "load-aware" else "full",
            )  # fmt: skip
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_yscale("log")
        _logarithmic(axes.yaxis)
        axes.set_xticks(range(len(LEVELS)), _TICKS)
        axes.set_xlabel(f"load: {source}")
    figure.axes[0].set_ylabel("latency over that of the best fixed cut")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _gain(results: Sequence[Measured]) -> Figure:
    """Share of latency that load-aware saves against bandwidth-only, by load and bandwidth; means over conditions."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    image: Any = None
    for source, axes in zip(SOURCES, figure.subplots(1, 2, sharey=True), strict=True):
        grid = np.full((len(LEVELS), len(MEGABITS)), np.nan)
        for row, level in enumerate(LEVELS):
            for column, rate in enumerate(MEGABITS):
                here = [
                    analysis.reduction(each, "bandwidth-only") for each in results
                    if each.condition.megabits == rate and each.condition.load.level == level
                    and (each.condition.load.source == source or not level)
                ]  # fmt: skip
                if here:
                    grid[row, column] = np.mean(here)
                    axes.text(column, row, f"{grid[row, column]:.0%}", ha="center", va="center", fontsize=8)
        image = axes.imshow(grid, cmap="PuOr_r", vmin=-1, vmax=1, aspect="auto", origin="lower")
        axes.grid(visible=False)
        axes.set_xticks(range(len(MEGABITS)), [str(rate) for rate in MEGABITS])
        axes.set_yticks(range(len(LEVELS)), _TICKS)
        axes.set_xlabel("bandwidth, Mbit/s")
        axes.set_title(f"load: {source}")
    figure.axes[0].set_ylabel("level")
    figure.colorbar(image, ax=figure.axes, label="latency saved against bandwidth-only", format=lambda x, _: f"{x:.0%}")
    return figure


def _trace(traced: Traced) -> Figure:
    figure = Figure(figsize=(12, 8), layout="constrained")
    world, latency, cut = figure.subplots(3, 1, sharex=True, height_ratios=(1, 2, 1.2))
    end = max(moment.at for moment in traced.moments)
    at = [each[0] for each in traced.world] + [end]
    world.step(at, [each[1] for each in traced.world] + [traced.world[-1][1]], where="post", color="#0072B2")
    world.set_yscale("log")
    _logarithmic(world.yaxis)
    world.set_ylabel("Mbit/s", color="#0072B2")
    load = world.twinx()
    for source, line, colour in zip(SOURCES, ("-", "--"), ("#D55E00", "#E69F00"), strict=True):
        levels = [each[2].level if each[2].source == source else 0.0 for each in traced.world]
        load.step(at, [*levels, levels[-1]], where="post", color=colour, linestyle=line, label=source)
    load.set_ylabel("load", color="#D55E00")
    load.set_ylim(-0.1, 2.2)
    load.grid(visible=False)
    load.legend(loc="upper right", fontsize=7)
    for arm, (colour, marker, line) in _STYLES.items():
        moments = [moment for moment in traced.moments if moment.arm == arm]
        if arm == "oracle":
            moments = [moment for moment in traced.moments if moment.arm == "load-aware"]
            seconds = [analysis.best_around(traced, moment.at) for moment in moments]
        else:
            seconds = [moment.sample.total for moment in moments]
        latency.plot(
            [moment.at for moment in moments], np.array(seconds) * 1e3, color=colour, marker=marker, markersize=3.5,
            linestyle=line, linewidth=1, label=arm, fillstyle="none" if arm != "load-aware" else "full",
        )  # fmt: skip
        if arm in {"bandwidth-only", "paper", "load-aware"}:
            shift = {"bandwidth-only": -0.01, "paper": 0.0, "load-aware": 0.01}[arm] * traced.whole
            cut.plot(
                [moment.at for moment in moments], [moment.sample.cut + shift for moment in moments], color=colour,
                marker=marker, markersize=3.5, linestyle=line, linewidth=1, drawstyle="steps-post",
                fillstyle="none" if arm != "load-aware" else "full",
            )  # fmt: skip
    latency.set_yscale("log")
    _logarithmic(latency.yaxis)
    latency.set_ylabel("latency, ms")
    latency.legend(loc="upper left", fontsize=7, ncols=3)
    cut.set_yticks([0, traced.whole], ["offload (0)", f"local ({traced.whole})"])
    cut.set_ylabel("partition point")
    cut.set_xlabel("seconds")
    figure.suptitle(f"{traced.network}, device {traced.device_factor:.1f} times slower")
    return figure


def _logarithmic(axis: Any) -> None:
    """Labels a logarithmic axis at 1, 2 and 5 with plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
