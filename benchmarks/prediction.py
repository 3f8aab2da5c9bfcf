"""How well the latency model predicts the times of heads and tails, before and after profiling.

Runs all heads and tails of the zoo's networks on one core with one thread, and compares the median of some runs of each
with two predictions: one from the calibration alone, in which no layer of these networks occurs, and one that also uses
the network's profile, measured at a few of its cuts just before. All measurements are kept as JSON lines.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.daemon import conditions, export_missing
from loadpart_common.console import progress
from loadpart_common.engines.choice import EXACT, EngineChoice
from loadpart_common.engines.mindspore.zoo import NETWORKS
from loadpart_common.engines.registry import DEFAULT_ENGINE, ENGINES, calibrated_setup
from loadpart_common.engines.segment_cache import SegmentCache
from loadpart_common.engines.timing import idle_seconds
from loadpart_common.latency.calibration import NETWORKS as CALIBRATED
from loadpart_common.latency.calibration import calibrate
from loadpart_common.latency.curves import Curves
from loadpart_common.latency.profile import Profile, cuts_to_profile, measure_profile
from loadpart_common.store.engine_choice import choose_engine
from loadpart_common.store.model_store import ModelStore

if TYPE_CHECKING:
    from loadpart_common.engines.segment_cache import CachedModel
    from loadpart_common.graph import Graph
    from loadpart_common.tensors import Array

RUNS = 5
BEFORE_MEAN, BEFORE_WORST, AFTER_WORST = 0.15, 0.25, 0.06
RESULTS = Path(".cache") / "benchmarks" / "prediction"

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=DEFAULT_ENGINE, choices=list(ENGINES), help="the engine")
    parser.add_argument("--precision", default=EXACT, help="how it is to compute")
    parser.add_argument("--quick", action="store_true", help="every fourth cut, after a calibration half as long")
    options = parser.parse_args()
    export_missing()
    choice = EngineChoice(options.engine, threads=1, precision=options.precision)
    store = ModelStore(Path(os.environ["LOADPART_EDGE_STORE"]))
    results = RESULTS / "-".join((options.engine, options.precision))
    results.mkdir(parents=True, exist_ok=True)
    chosen = {name: choose_engine(store.open(name), choice) for name in NETWORKS}
    engine = calibrated_setup(choice).start([sorted(os.sched_getaffinity(0))[-1]])
    cache = SegmentCache(engine, memory_limit_bytes=64 << 20)
    networks = CALIBRATED // 2 if options.quick else CALIBRATED
    with progress("calibrating") as tell:
        model = calibrate(cache, networks=networks, on_progress=tell)
    (results / "model.json").write_text(model.to_json(), encoding="utf-8")
    console.print(f"{conditions()}; engine {engine.setup}")
    console.print(f"calibrated on {model.segments} pieces of {networks} random networks; fit {model.error:.1%}")
    table = Table(
        "network", "cuts", "heads", "tails", "both", "profiled cuts", "heads", "tails", "both",
        title="mean absolute error of predicted seconds, before and after profiling", header_style="bold",
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    before, after = {}, {}
    for name, (_, stored) in chosen.items():
        network = cache.load(stored.path, stored.manifest.format, stored.manifest.digest)
        graph = network.graph
        measured = measure_profile(cache, network, model)
        truth = run_all(cache, network, name, every=4 if options.quick else 1)
        cache.unload(network)
        curves = Curves(graph, model)
        for kind, anchors in (("before", Profile({}, {})), ("after", measured)):
            rows += compare(name, kind, curves, anchors, truth)
        errors = {
            kind: [error_of(rows, name, kind, side) for side in ("head", "tail", "")] for kind in ("before", "after")
        }
        before[name], after[name] = errors["before"][-1], errors["after"][-1]
        table.add_row(
            name, str(len(graph.cuts)), *(f"{error:.1%}" for error in errors["before"]),
            str(len(cuts_to_profile(graph, model))), *(f"{error:.1%}" for error in errors["after"]),
        )  # fmt: skip
        write(rows, results / "segments.jsonl")
    cache.close()
    console.print(table)
    draw(rows, results / "prediction.png")
    mean = float(np.mean(list(before.values())))
    console.print(
        f"before profiling: mean {mean:.1%} (at most {BEFORE_MEAN:.0%} wanted), worst {max(before.values()):.1%} "
        f"(at most {BEFORE_WORST:.0%} wanted)"
    )
    console.print(f"after profiling: worst {max(after.values()):.1%} (at most {AFTER_WORST:.0%} wanted)")
    console.print(f"every segment is in {results}/segments.jsonl, the picture in {results}/prediction.png")
    if mean > BEFORE_MEAN or max(before.values()) > BEFORE_WORST or max(after.values()) > AFTER_WORST:
        sys.exit(1)


def run_all(cache: SegmentCache, network: CachedModel, name: str, *, every: int) -> dict[tuple[str, int], float]:
    """Measured seconds of the head and the tail of every cut, or of one in so many."""
    graph: Graph = network.graph
    truth = {}
    for cut in track(graph.cuts[::every], description=f"running {name}", console=console, transient=True):
        if cut.index > 0:
            truth["head", cut.index] = idle_seconds(cache, network, graph.head(cut.index), runs=RUNS)
        if cut.index < graph.layer_count:
            truth["tail", cut.index] = idle_seconds(cache, network, graph.tail(cut.index), runs=RUNS)
    return truth


def compare(
    name: str, kind: str, curves: Curves, anchors: Profile, truth: dict[tuple[str, int], float]
) -> list[dict[str, Any]]:
    """A row for each segment, with its predicted and measured seconds."""
    predicted: dict[str, Array] = {
        "head": curves.head_seconds(anchors.heads),
        "tail": curves.tail_seconds(anchors.tails),
    }
    return [
        {
            "network": name,
            "kind": kind,
            "side": side,
            "cut": cut,
            "measured": seconds,
            "predicted": float(predicted[side][cut]),
        }
        for (side, cut), seconds in truth.items()
    ]


def error_of(rows: list[dict[str, Any]], name: str, kind: str, side: str) -> float:
    """Mean absolute error of the predictions, as a share of the measured seconds."""
    chosen = [row for row in rows if row["network"] == name and row["kind"] == kind and side in ("", row["side"])]
    return float(np.mean([abs(row["predicted"] / row["measured"] - 1) for row in chosen]))


def write(rows: list[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Predicted against measured seconds, before and after profiling."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    marks = zip(
        NETWORKS, ("#0072B2", "#000000", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"), "oXsv^DP", strict=True
    )
    styles = {name: (colour, mark) for name, colour, mark in marks}
    for axes, kind in zip(figure.subplots(1, 2, sharex=True, sharey=True), ("before", "after"), strict=True):
        for name, (colour, mark) in styles.items():
            chosen = [row for row in rows if row["kind"] == kind and row["network"] == name]
            x, y = ([row[key] * 1e3 for row in chosen] for key in ("measured", "predicted"))
            axes.plot(x, y, mark, color=colour, markersize=4, alpha=0.6, markeredgewidth=0, label=name)
        ends = np.array([0.2, 500.0])
        axes.plot(ends, ends, "k-", linewidth=0.8)
        axes.plot(ends, ends * 1.25, "k:", ends, ends / 1.25, "k:", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("measured, ms")
        axes.set_title(f"{kind} profiling (dotted: 25 %)")
    figure.axes[0].set_ylabel("predicted, ms")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
