"""What each codec costs and saves: bytes, seconds and errors of every plan that can win, on thirty photographs.

For each network of the zoo, each codec is tried on what crosses at the cuts where it can win. It encodes right after
the head has run and decodes right before the tail runs, as in an inference: what lies in the processor's caches already
is encoded several times as quickly. The error is that of the network's outputs against those of the whole network. On
the network with trained weights, many parts of each photograph are tried, to count how often the class stays the same;
one half of the photographs then says which plans keep a bound, and the other half whether they do.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import Progress

from benchmarks.comparison import codecs as latency
from benchmarks.comparison.grid import TRAINED
from benchmarks.comparison.records import read
from benchmarks.daemon import conditions, export_missing
from benchmarks.photographs import photographs
from loadpart_common.codecs.registry import CODECS
from loadpart_common.engines.choice import EngineChoice
from loadpart_common.engines.mindspore.zoo import NETWORKS
from loadpart_common.graph import Value
from loadpart_common.planning.plan import DEFAULT_CODEC, PlanKey, coded_plans, points, rated_cost
from loadpart_common.planning.winners import winning_keys
from loadpart_common.store.engine_choice import choose_engine
from loadpart_common.store.model_store import ModelStore
from loadpart_device.allowed_codecs import AllowedCodecs, MeasuredPlan
from loadpart_device.images import load_crops
from loadpart_device.local import LocalRuntime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from loadpart_common.codecs.base import Buffer
    from loadpart_common.graph import Graph
    from loadpart_common.tensors import Array
    from loadpart_device.local import Values

PARTS, QUICK_PARTS = 14, 4
"""How often each photograph counts on the network with trained weights: whole, and then random parts of it."""

QUICK_PHOTOGRAPHS = 6
BUDGETS: tuple[dict[str, float], ...] = (
    {"max_error": 0.005}, {"max_error": 0.02}, {"max_error": 0.05}, {"min_agreement": 0.99}, {"min_agreement": 0.995},
)  # fmt: skip
MOST_LOSSLESS_SHARE, MOST_Q8Z_SHARE, LEAST_AGREEMENT = 0.58, 0.22, 0.99

RESULTS = Path(".cache") / "benchmarks" / "codecs.json"
LATENCY = Path(".cache") / "benchmarks" / "codecs" / "benchmarks" / "results.jsonl"
REPORT, PICTURE = Path("docs") / "codecs.md", "codecs.svg"
MEMORY = 4 << 30
COLOURS = ("#009E73", "#E69F00", "#0072B2", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "<", ">", "x")

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


class Tried(NamedTuple):
    """One plan on one picture.

    Attributes:
        network: The network.
        cut: Layers before the cut.
        codec: The codec.
        photograph: Number of the photograph.
        raw_bytes: What crosses without a codec.
        nbytes: What crosses with it.
        encode_seconds: Right after the head; None when another codec was tried there before.
        decode_seconds: Right before the tail.
        error: Largest difference of an output, as a share of the largest output.
        agrees: Whether the highest output is the same.
    """

    network: str
    cut: int
    codec: str
    photograph: int
    raw_bytes: int
    nbytes: int
    encode_seconds: float | None
    decode_seconds: float
    error: float
    agrees: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PHOTOGRAPHS} photographs")
    parser.add_argument("--network", action="append", choices=list(NETWORKS), help="this one; may be repeated")
    parser.add_argument("--engine", default="onnxruntime", help="the engine")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the report goes, and the picture beside it")
    parser.add_argument("--again", action="store_true", help="write the report anew from the last results")
    options = parser.parse_args()
    if not options.again:
        export_missing()
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        names = options.network or list(NETWORKS)
        paths = photographs()[:QUICK_PHOTOGRAPHS] if options.quick else photographs()
        parts = QUICK_PARTS if options.quick else PARTS
        how = f"{conditions()}; {options.engine}, one thread; {len(paths)} photographs"
        tried = try_all(names, paths, parts, options.engine)
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps({"how": how, "tried": tried}), "utf-8")
    results = json.loads(RESULTS.read_text("utf-8"))
    tried = [Tried(*each) for each in results["tried"]]
    report(tried, results["how"], options.report)
    console.print(Markdown(options.report.read_text("utf-8")))
    missed = [line for line, is_reached in wanted(tried) if not is_reached]
    for line, _ in wanted(tried):
        console.print(line)
    if missed and not options.quick:
        sys.exit(1)


def try_all(names: Sequence[str], paths: Sequence[Path], parts: int, engine: str) -> list[Tried]:
    store = ModelStore(Path(os.environ["LOADPART_EDGE_STORE"]))
    tried: list[Tried] = []
    with Progress(console=console) as bar:
        for name in names:
            setup, stored = choose_engine(store.open(name), EngineChoice(engine, threads=1))
            local = LocalRuntime(stored, setup, memory_limit_bytes=MEMORY)
            plans = candidates(stored.graph, local)
            local.build(plans)
            local.wait_built()
            task = bar.add_task(name, total=len(paths))
            for number, path in enumerate(paths):
                pictures = load_crops(path, stored.graph.inputs[0], parts if name == TRAINED else 1)
                for turn, picture in enumerate(pictures):
                    tried += try_plans(name, stored.graph, local, plans, picture, number, number + turn)
                bar.advance(task)
            local.close()
    return tried


def candidates(graph: Graph, local: LocalRuntime) -> dict[int, list[str]]:
    """The codecs of the plans that can win, by cut."""
    costs = {plan: rated_cost(graph, plan, CODECS[plan.codec].rates) for plan in coded_plans(graph, CODECS)}
    heads = local.head_seconds
    keys = winning_keys(points(graph, heads, heads[-1] - heads, costs))
    plans: dict[int, list[str]] = defaultdict(list)
    for cut, codec in sorted(keys):
        if codec not in {"", DEFAULT_CODEC}:
            plans[cut].append(codec)
    return plans


def try_plans(
    name: str,
    graph: Graph,
    local: LocalRuntime,
    plans: dict[int, list[str]],
    picture: Array,
    photograph: int,
    turn: int,
) -> Iterator[Tried]:
    """Tries every plan on one picture; codecs take turns in being the first after the head."""
    inputs: Values = {Value(-1, 0): picture}
    (output,) = graph.outputs
    expected = local.head(graph.layer_count, inputs, 1)[0][output].astype(np.float64)
    for cut, codecs in plans.items():
        first = turn % len(codecs)
        values = {**inputs, **(local.head(cut, inputs, 1)[0] if cut else {})}
        live = graph.cut(cut).live
        for place, codec in enumerate(codecs[first:] + codecs[:first]):
            started = time.perf_counter()
            data = [CODECS[codec].encode(values[value]) for value in live]
            encoded = time.perf_counter()
            decoded = {value: decode(codec, each, values[value]) for value, each in zip(live, data, strict=True)}
            ready = time.perf_counter()
            got = local.finish(cut, {**inputs, **decoded}, 1)[output].astype(np.float64)
            raw = [values[value].nbytes for value in live]
            yield Tried(
                name,
                cut,
                codec,
                photograph,
                sum(raw),
                sum(nbytes if each is None else len(each) for nbytes, each in zip(raw, data, strict=True)),
                encoded - started if place == 0 else None,
                ready - encoded,
                float(np.abs(got - expected).max() / np.abs(expected).max()),
                bool(got.argmax() == expected.argmax()),
            )


def decode(codec: str, data: Buffer | None, array: Array) -> Array:
    """What the other side gets of an array; the array itself when the codec refused it."""
    return array if data is None else CODECS[codec].decode(data, array.dtype, array.shape)


def by(tried: Iterable[Tried], *fields: str) -> dict[Any, list[Tried]]:
    """Trials in groups, by what they have in these fields."""
    groups: dict[Any, list[Tried]] = defaultdict(list)
    for each in tried:
        key = tuple(getattr(each, field) for field in fields)
        groups[key if len(key) > 1 else key[0]].append(each)
    return groups


def share(tried: Iterable[Tried]) -> float:
    """Mean share of the raw bytes that crosses."""
    return statistics.mean(each.nbytes / each.raw_bytes for each in tried)


def agreement(tried: Iterable[Tried]) -> float:
    """Share of pictures whose class stays the same."""
    return float(np.mean([each.agrees for each in tried]))


def nanoseconds(tried: Iterable[Tried], field: str) -> float:
    """Median nanoseconds to encode or decode a raw byte."""
    figures = [(getattr(each, field), each.raw_bytes) for each in tried]
    return 1e9 * float(np.median([seconds / nbytes for seconds, nbytes in figures if seconds is not None]))


def wanted(tried: Sequence[Tried]) -> list[tuple[str, bool]]:
    """The figures that are wanted, in words, and whether they are reached."""
    lines = []
    if lossless := [each for each in tried if each.codec == "webp-lossless"]:
        figure = share(lossless)
        text = f"webp-lossless: {figure:.3f} of the raw bytes on average (at most {MOST_LOSSLESS_SHARE} wanted)"
        lines.append((text, figure <= MOST_LOSSLESS_SHARE))
    if trained := [each for each in tried if (each.network, each.codec) == (TRAINED, "q8z")]:
        figure, worst = share(trained), min(map(agreement, by(trained, "cut").values()))
        lines += [
            (
                f"q8z on {TRAINED}: {figure:.3f} of the raw bytes (at most {MOST_Q8Z_SHARE} wanted)",
                figure <= MOST_Q8Z_SHARE,
            ),
            (
                f"q8z on {TRAINED}: the same class in {worst:.1%} of the pictures at the worst cut, "
                f"{agreement(trained):.1%} over all (at least {LEAST_AGREEMENT:.0%} wanted)",
                worst >= LEAST_AGREEMENT,
            ),
        ]
        lines += [(f"held out, {row[0]}: {row[3]} beyond the budget", row[3] == "none") for row in held_out(tried)]
    return lines


def held_out(tried: Sequence[Tried]) -> list[tuple[str, ...]]:
    """For each budget: what one half of the photographs allows, and how that does on the other half, both ways."""
    rows: list[tuple[str, ...]] = []
    own = [each for each in tried if each.network == TRAINED and not CODECS[each.codec].is_lossless]
    for budget in BUDGETS:
        allowed_plans, kept, beyond = 0, [], 0
        for half in (0, 1):
            measured = [
                measured_plan(cut, codec, each)
                for (cut, codec), each in by([t for t in own if t.photograph % 2 == half], "cut", "codec").items()
            ]
            allowed = AllowedCodecs(**budget)  # type: ignore[arg-type]
            allowed.measured(measured)
            others = by([t for t in own if t.photograph % 2 != half], "cut", "codec")
            for plan, trials in others.items():
                if allowed.allows(PlanKey(*plan)):
                    allowed_plans += 1
                    kept += trials
                    beyond += not keeps(trials, budget)
        ((name, bound),) = budget.items()
        worst = max((each.error for each in kept), default=0.0)
        rows.append((
            f"{name} {bound:g}", f"{allowed_plans} of {2 * len(by(own, 'cut', 'codec'))}",
            f"{worst:.2%}, {agreement(kept):.2%}" if kept else "", f"{beyond}" if beyond else "none",
        ))  # fmt: skip
    return rows


def keeps(tried: Sequence[Tried], budget: dict[str, float]) -> bool:
    """Whether a plan kept a budget on pictures that were not used to allow it."""
    if "max_error" in budget:
        return max(each.error for each in tried) <= budget["max_error"]
    return agreement(tried) >= budget["min_agreement"]


def measured_plan(cut: int, codec: str, tried: Sequence[Tried]) -> MeasuredPlan:
    errors = [each.error for each in tried]
    return MeasuredPlan(cut, codec, statistics.mean(errors), max(errors), agreement(tried), len(tried))


def report(tried: Sequence[Tried], how: str, path: Path) -> None:
    """Writes the report, and a picture beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(tried, path.with_name(PICTURE))
    codecs = [
        (
            f"`{codec}`", "nothing" if CODECS[codec].is_lossless else "something", f"{share(each):.2f}",
            f"{nanoseconds(each, 'encode_seconds'):.1f}", f"{nanoseconds(each, 'decode_seconds'):.1f}",
            f"{statistics.mean(t.error for t in each):.2%}", f"{max(t.error for t in each):.2%}",
        )
        for codec, each in sorted(by(tried, "codec").items())
    ]  # fmt: skip
    networks = [
        (
            network, f"`{codec}`", ", ".join(map(str, sorted(by(each, "cut")))), f"{share(each):.2f}",
            f"{statistics.mean(t.nbytes for t in each) / 1e3:.0f}",
            f"{nanoseconds(each, 'encode_seconds') * statistics.mean(t.raw_bytes for t in each) * 1e-6:.2f}",
            f"{nanoseconds(each, 'decode_seconds') * statistics.mean(t.raw_bytes for t in each) * 1e-6:.2f}",
            f"{statistics.mean(t.error for t in each):.2%}",
        )
        for (network, codec), each in by(tried, "network", "codec").items()
        if not codec.startswith("jpeg")
    ]  # fmt: skip
    lines = [
        "# What codecs cost and save",
        "",
        "A plan says where a network is cut and which codec writes what crosses. `make bench-codecs` writes this page.",
        f"Measured on: {how}.",
        "",
        f"![bytes and errors of the plans that can win]({PICTURE})",
        "",
        "## By codec",
        "",
        "Means over the networks and the cuts where a codec can win. Bytes are a share of the raw ones; nanoseconds "
        "are for a raw byte, encoding right after the head and decoding right before the tail; the error is the "
        "largest difference of an output, as a share of the largest output.",
        "",
        *rows(("codec", "loses", "bytes", "encode, ns", "decode, ns", "mean error", "worst error"), codecs),
        "",
        "## By network",
        "",
        *rows(
            ("network", "codec", "cuts where it can win", "bytes", "kB", "encode, ms", "decode, ms", "mean error"),
            networks,
        ),
    ]
    if own := [each for each in tried if each.network == TRAINED]:
        plans = [
            (
                str(cut), f"`{codec}`", f"{each[0].raw_bytes / 1e3:.0f}", f"{share(each):.2f}",
                f"{statistics.mean(t.error for t in each):.2%}", f"{max(t.error for t in each):.2%}",
                f"{agreement(each):.1%}",
            )
            for (cut, codec), each in sorted(by(own, "cut", "codec").items())
        ]  # fmt: skip
        number = len(next(iter(by(own, "cut", "codec").values())))
        lines += [
            "",
            f"## Answers of {TRAINED}, which has trained weights",
            "",
            f"Over {number} pictures: the photographs, and random parts of them.",
            "",
            *rows(("cut", "codec", "raw kB", "bytes", "mean error", "worst error", "same class"), plans),
            "",
            "## Do budgets hold on other pictures?",
            "",
            "One half of the photographs says which plans a budget allows, as `loadpart-device accuracy` does; the "
            "other half is what they then see; and the other way round.",
            "",
            *rows(("budget", "plans allowed", "worst error, same class", "plans beyond it"), held_out(tried)),
        ]
    if LATENCY.exists():
        lines += [
            "",
            "## Latency",
            "",
            "Load-aware devices in the testbed of [the comparison](benchmarks.md), which differ only in the codecs "
            "that they may use, one inference each in turn on the same photograph; links of 1 to 16 Mbit/s, an idle "
            "server and one that others use half of the time.",
            "",
            *(f"- {line}" for line in latency.summary(read(LATENCY))),
            "",
            *latency.table(read(LATENCY)),
        ]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def rows(header: Sequence[str], cells: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *cells)]


def draw(tried: Sequence[Tried], path: Path) -> None:
    """Bytes and errors of the plans that can win, for each network and codec."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update({"svg.hashsalt": "loadpart", "font.size": 9})
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    sizes, errors = figure.subplots(1, 2)
    networks = list(by(tried, "network"))
    shown = [codec for codec in CODECS if any(each.codec == codec for each in tried)]
    for place, codec in enumerate(shown):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        groups = by([each for each in tried if each.codec == codec], "network")
        across = [networks.index(network) + (place - len(shown) / 2) * 0.1 for network in groups]
        style = {"color": colour, "marker": marker, "linestyle": "", "label": codec}
        sizes.plot(across, [share(each) for each in groups.values()], **style)
        if not CODECS[codec].is_lossless:
            plans = by([each for each in tried if each.codec == codec], "network", "cut").values()
            means = [statistics.mean(each.error for each in plan) * 100 for plan in plans]
            errors.plot([share(plan) for plan in plans], means, **style)
    sizes.set_xticks(range(len(networks)), networks, rotation=20)
    sizes.set_ylabel("bytes that cross, as a share of the raw ones")
    sizes.set_ylim(0, 0.8)
    errors.set_xlabel("bytes that cross, as a share of the raw ones")
    errors.set_ylabel("mean error of the outputs, %")
    errors.set_yscale("log")
    for axes in (sizes, errors):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
