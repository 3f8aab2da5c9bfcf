"""Pictures of plans; needs matplotlib, the extra `plot`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from loadpart_common.errors import SettingsError
from loadpart_common.planning.plan import DEFAULT_CODEC
from loadpart_common.planning.plans import Plans
from loadpart_device.deciding.explain import View, plan_costs, weigh_views

if TYPE_CHECKING:
    from pathlib import Path

    from loadpart_common.planning.plan import PlanKey

_PARTS = (
    ("device_seconds", "device", "#0072B2", ""),
    ("network_seconds", "network", "#E69F00", "//"),
    ("queue_seconds", "queue", "#999999", ".."),
    ("server_seconds", "server", "#009E73", "\\\\"),
)
"""Colours that the colour-blind can tell apart (Okabe and Ito 2008), and hatches for print."""

_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
_MOST_TIMES = 3.0  # of the best plan's latency that the bars show
_STEPS = 160


def plot(view: View, path: Path) -> None:
    """Draws what every cut costs with one server, and which plan wins over bandwidth and load.

    Raises:
        SettingsError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingsError("plot: needs matplotlib: pip install 'loadpart[plot]'") from error
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    bars, winners = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_bars(bars, view)
    _draw_winners(winners, view)
    figure.suptitle(f"{view.network.name}: {view.network.source}\n{view.state}", fontsize=10)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise SettingsError(f"plot: cannot write {path}: {error}") from error


def _draw_bars(axes: Any, view: View) -> None:
    costs = plan_costs([view])
    places = np.arange(len(costs))
    bottom = np.zeros(len(costs))
    for field, label, colour, hatch in _PARTS:
        heights = np.array([getattr(cost, field) for cost in costs]) * 1e3
        axes.bar(places, heights, 1.0, bottom, color=colour, label=label, hatch=hatch, edgecolor="white", linewidth=0.2)
        bottom += heights
    chosen = next(place for place, cost in enumerate(costs) if cost.chosen)
    best = costs[chosen].total_seconds * 1e3
    axes.set_ylim(0, min(best * _MOST_TIMES, bottom.max() * 1.1))
    axes.annotate(
        f"{costs[chosen].plan}\n{best:.1f} ms", (chosen, best), (0, 28), textcoords="offset points",
        ha="center", fontweight="bold", arrowprops={"arrowstyle": "-|>"}, annotation_clip=False,
    )  # fmt: skip
    can_win = [place for place, cost in enumerate(costs) if cost.can_win]
    axes.plot(can_win, np.zeros(len(can_win)), "k^", markersize=6, clip_on=False, label="can win")
    axes.set_xticks(can_win, [_tick(costs[place].plan) for place in can_win])
    axes.set_xlim(-1, len(costs))
    axes.set_xlabel("cut (layers on the device)")
    axes.set_ylabel("milliseconds")
    axes.legend(loc="upper right", fontsize=8)


def _tick(plan: PlanKey) -> str:
    return str(plan.cut) if plan.codec in ("", DEFAULT_CODEC) else f"{plan.cut}\n{plan.codec}"


def _draw_winners(axes: Any, view: View) -> None:
    from matplotlib.colors import BoundaryNorm, ListedColormap

    (network, state), plans = view, Plans(view.network.winners)
    keys = [point.key for point in plans.points]
    here = state.link.megabits
    rates = np.geomspace(min(0.25, here / 2), max(256.0, here * 2), _STEPS)
    slow_downs = np.geomspace(1.0, max(32.0, state.load.slow_down * 2), _STEPS)

    def winner(megabits: float, slow_down: float) -> int:
        """Position of the plan that wins with another bandwidth and another slow-down."""
        there = state._replace(
            link=state.link._replace(seconds_per_byte=8e-6 / megabits),
            load=state.load._replace(slow_down=slow_down),
        )
        return weigh_views([View(network, there)], [plans]).position

    winners = [[winner(rate, slow_down) for rate in rates] for slow_down in slow_downs]
    colours = ListedColormap([_COLOURS[position % len(_COLOURS)] for position in range(len(keys))])
    norm = BoundaryNorm(np.arange(len(keys) + 1) - 0.5, len(keys))
    mesh = axes.pcolormesh(rates, slow_downs, winners, cmap=colours, norm=norm, shading="nearest", rasterized=True)
    bar = axes.figure.colorbar(mesh, ax=axes, ticks=range(len(keys)))
    bar.ax.set_yticklabels([str(key) for key in keys], fontsize=8)
    axes.plot([here], [state.load.slow_down], "k*", markersize=14, markeredgecolor="white")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("uplink, Mbit/s")
    axes.set_ylabel("server slow-down")
    axes.set_title("which plan wins", fontsize=10)
