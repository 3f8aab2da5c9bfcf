"""The engines side by side: every network of the zoo, whole, with one and two threads, alone and through the daemon.

"bare" is the engine's own session on the same model, made as its documentation says, without any of the project's code;
"segment" is the project's call of the whole network as a segment; their ratio says what cutting costs where nothing is
cut. "offloaded" is an inference that a daemon computes whole: the image crosses, and the answer comes back. The calls
of a network take turns, in one process for each number of threads; with one thread, the device's process has one core
and the daemons have the other.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import track

from benchmarks.daemon import conditions, daemon, export_missing
from loadpart_common.engines.adopted import adopt_into
from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.choice import EXACT
from loadpart_common.engines.mindspore.zoo import NETWORKS
from loadpart_common.engines.registry import ENGINES
from loadpart_common.engines.segment_cache import SegmentCache
from loadpart_common.formats.registry import FORMATS
from loadpart_common.store.model_store import ModelStore
from loadpart_device import OffloadClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadpart_common.store.model_store import StoredModel
    from loadpart_common.tensors import Array

ROUNDS, QUICK_ROUNDS = 21, 5
MOST_RATIO = 1.05
_PAUSE_SECONDS = 0.03
SETUPS = (("mindspore", EXACT), ("onnxruntime", EXACT), ("openvino", EXACT), ("openvino", "bfloat16"))
RESULTS = Path(".cache") / "benchmarks" / "engines.json"
REPORT, PICTURE = Path("docs") / "engines.md", "engines.svg"

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)

Row = dict[str, Any]
Calls: TypeAlias = "dict[tuple[EngineSetup, str], Callable[[], object]]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--network", action="append", choices=list(NETWORKS), help="this one; may be repeated")
    parser.add_argument("--report", type=Path, default=REPORT, help="where the report goes, and the picture beside it")
    parser.add_argument("--again", action="store_true", help="write the report anew from the last results")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)  # the process of one number of threads
    options = parser.parse_args()
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    names = options.network or list(NETWORKS)
    if options.part:
        print(json.dumps(measure_all(names, options.part, rounds)))
        return
    if not options.again:
        export_missing()
        rows: list[Row] = []
        for threads in (1, 2):
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.engines", "--part", str(threads)]
            command += [word for name in names for word in ("--network", name)]
            command += ["--quick"] if options.quick else []
            rows += json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps({"how": f"{conditions()}; medians of {rounds} rounds", "rows": rows}), "utf-8")
    results = json.loads(RESULTS.read_text("utf-8"))
    rows = results["rows"]
    report(rows, results["how"], options.report)
    draw(rows, options.report.with_name(PICTURE))
    console.print(Markdown(options.report.read_text("utf-8")))
    worst = max(rows, key=lambda row: row["segment"] / row["bare"])
    ratio = worst["segment"] / worst["bare"]
    console.print(
        f"largest ratio of segment to bare {ratio:.3f} ({worst['network']}, {worst['engine']}, {worst['threads']} "
        f"thread(s)), at most {MOST_RATIO} wanted; the report is {options.report}"
    )
    if ratio > MOST_RATIO:
        sys.exit(1)


def measure_all(names: list[str], threads: int, rounds: int) -> list[Row]:
    """A row for each network and engine, in milliseconds: what the process of one number of threads does."""
    cores = sorted(os.sched_getaffinity(0))
    mine, theirs = ({cores[0]}, {cores[-1]}) if threads == 1 else (set(cores), set(cores))
    os.sched_setaffinity(0, mine)
    setups = [EngineSetup(ENGINES[name], threads, precision) for name, precision in SETUPS if offered(name, precision)]
    caches = {setup: SegmentCache(setup.start(mine), memory_limit_bytes=1 << 30) for setup in setups}
    rows: dict[tuple[str, EngineSetup], Row] = {
        (name, setup): {"network": name, "engine": engine_name(setup), "threads": threads}
        for name in names
        for setup in setups
    }
    store = ModelStore(Path(os.environ["LOADPART_EDGE_STORE"]))
    for name in followed(names, f"{threads} thread(s), alone"):
        stored = store.open(name)
        image = np.random.default_rng(0).integers(0, 256, stored.graph.inputs[0].concrete(1), np.uint8)
        with contextlib.ExitStack() as stack:
            calls: Calls = {}
            for setup in setups:
                calls[setup, "bare"] = bare(setup, stored, image)
                calls[setup, "segment"] = stack.enter_context(segment(caches[setup], stored, image))
            for (setup, kind), milliseconds in take_turns(calls, rounds).items():
                rows[name, setup][kind] = milliseconds
    for cache in caches.values():
        cache.close()
    # Only now: idle daemons compute a little from time to time, to know how quick they are.
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        targets = {setup: stack.enter_context(served(setup, names, theirs)) for setup in setups}
        for name in followed(names, f"{threads} thread(s), offloaded"):
            image = np.random.default_rng(0).integers(0, 256, store.open(name).graph.inputs[0].concrete(1), np.uint8)
            with contextlib.ExitStack() as clients:
                calls = {
                    (setup, "offloaded"): clients.enter_context(offloaded(target, name, image, folder))
                    for setup, target in targets.items()
                }
                for (setup, kind), milliseconds in take_turns(calls, rounds).items():
                    rows[name, setup][kind] = milliseconds
    return list(rows.values())


def followed(names: list[str], what: str) -> Iterator[str]:
    """The names, with a progress bar."""
    yield from track(names, description=what, console=Console(stderr=True), transient=True)


@contextlib.contextmanager
def served(setup: EngineSetup, names: list[str], cores: set[int]) -> Iterator[str]:
    """A daemon on some cores; gives its address."""
    arguments = ("--engine", setup.engine.name, "--precision", setup.precision, "--threads", str(setup.threads))
    with daemon(*arguments, "--models", ",".join(names), cores=cores, stderr=subprocess.DEVNULL) as running:
        yield running.target


def offered(name: str, precision: str) -> bool:
    """Whether an engine is installed and computes in a precision here."""
    engine = ENGINES[name]
    try:
        engine.check_precision(precision, "")
    except Exception:  # not offered, or not installed
        return False
    return engine.is_installed()


def engine_name(setup: EngineSetup) -> str:
    return setup.engine.name if setup.precision == EXACT else f"{setup.engine.name} {setup.precision}"


def take_turns(calls: Calls, rounds: int) -> dict[tuple[EngineSetup, str], float]:
    """Median milliseconds of each call; all of them run once a round, in an order drawn anew.

    Between two turns there is a pause: threads of engines keep a core busy for a while after a call. A turn has two
    calls, of which the second one counts: after the pause, the system may wake two threads on one core.
    """
    readings: dict[tuple[EngineSetup, str], list[float]] = {key: [] for key in calls}
    keys = list(calls)
    rng = random.Random(0)
    for key in keys:
        calls[key]()
    for _ in range(rounds):
        for key in rng.sample(keys, len(keys)):
            time.sleep(_PAUSE_SECONDS)
            calls[key]()
            started = time.perf_counter()
            calls[key]()
            readings[key].append(time.perf_counter() - started)
    return {key: statistics.median(seconds) * 1e3 for key, seconds in readings.items()}


@contextlib.contextmanager
def segment(cache: SegmentCache, stored: StoredModel, image: Array) -> Iterator[Callable[[], object]]:
    """The project's call of a whole network."""
    with tempfile.TemporaryDirectory() as folder:
        if cache.engine.adopts:
            with contextlib.closing(FORMATS[stored.manifest.format].open(stored.path)) as file:
                adopt_into(Path(folder), cache.engine.setup, file, trying=False)
        adopted = Path(folder) if cache.engine.adopts else None
        model = cache.load(stored.path, stored.manifest.format, stored.manifest.digest, adopted=adopted)
        whole = cache.segment(model, model.graph.head(model.graph.layer_count), 1)
        yield lambda: whole.run([image])
        cache.unload(model)


@contextlib.contextmanager
def offloaded(target: str, name: str, image: Array, cache: str) -> Iterator[Callable[[], object]]:
    """An inference that is offloaded whole; the device's own engine is the quickest to load."""
    with OffloadClient(
        target, name, engine="onnxruntime", threads=1, cache=cache, policy="offload", hedge=False
    ) as client:
        client.wait_ready(60)
        assert client.infer(image).plan.location == "offload"
        yield lambda: client.infer(image)


def bare(setup: EngineSetup, stored: StoredModel, image: Array) -> Callable[[], object]:
    """The engine's own session on a model, without any of the project's code in the call."""
    if setup.engine.name == "mindspore":
        import mindspore

        cell = mindspore.nn.GraphCell(mindspore.load(str(stored.path)))
        return lambda: cell(mindspore.Tensor(image)).asnumpy()
    with contextlib.closing(FORMATS[stored.manifest.format].open(stored.path)) as file:
        program = file.onnx()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network.onnx"
            path.write_bytes(with_weights(program.model, program.folder))
            return SESSIONS[setup.engine.name](path, setup, image)


def with_weights(model: Any, folder: Path) -> bytes:
    """An ONNX model with its weights inside."""
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    load_external_data_for_model(copy, str(folder))
    written: bytes = copy.SerializeToString()
    return written


def onnxruntime_session(path: Path, setup: EngineSetup, image: Array) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image}
    return lambda: session.run(None, feed)


def openvino_session(path: Path, setup: EngineSetup, image: Array) -> Callable[[], object]:
    import openvino

    precision = "f32" if setup.precision == EXACT else "bf16"
    model = openvino.Core().read_model(path)
    model.reshape(list(image.shape))
    settings = {
        "INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": setup.threads, "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }  # fmt: skip
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer([image], share_inputs=True)


SESSIONS = {"onnxruntime": onnxruntime_session, "openvino": openvino_session}


def report(rows: list[Row], how: str, path: Path) -> None:
    """Writes the table."""
    reference = {(row["network"], row["threads"]): row["segment"] for row in rows if row["engine"] == "mindspore"}
    lines = [
        "| network | threads | engine | bare | segment | segment / bare | offloaded | share of MindSpore's time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["network"], row["threads"])):
        share = row["segment"] / reference.get((row["network"], row["threads"]), row["segment"])
        lines.append(
            f"| {row['network']} | {row['threads']} | {row['engine']} | {row['bare']:.2f} | {row['segment']:.2f} "
            f"| {row['segment'] / row['bare']:.3f} | {row['offloaded']:.2f} | {share:.2f} |"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEXT.format(how=how, picture=PICTURE, table="\n".join(lines)), encoding="utf-8")


TEXT = """# The engines side by side

Milliseconds of whole networks, for one image of 8-bit pixels; `make bench-engines` writes this page.

- *bare*: the engine's own session on the same model, made as its documentation says, without any of our code.
- *segment*: our call of the whole network as a segment. Its ratio to *bare* says what being cut costs where nothing is.
- *offloaded*: an inference that sends the image to a daemon on the same machine, which computes all of it.

The calls of a network took turns, in one process for each number of threads; daemons were started when all networks had
been run without them. With one thread, that process had one core and the daemons had the other; with two, all had both.

![Whole networks on each engine]({picture})

{how}

{table}
"""


def draw(rows: list[Row], path: Path) -> None:
    """Bars of each network and engine: the whole network as a segment, and through the daemon."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6), layout="constrained")
    names = list(dict.fromkeys(row["network"] for row in rows))
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    colours = dict(zip(engines, ("#999999", "#0072B2", "#009E73", "#E69F00"), strict=False))
    width = 0.8 / len(engines)
    for axes, threads in zip(figure.subplots(2, 1, sharex=True), (1, 2), strict=True):
        for place, engine in enumerate(engines):
            chosen = [row for row in rows if row["engine"] == engine and row["threads"] == threads]
            where = np.array([names.index(row["network"]) for row in chosen]) + (place - (len(engines) - 1) / 2) * width
            heights = [row["segment"] for row in chosen]
            bars = axes.bar(where, heights, width, color=colours[engine], label=engine)
            axes.bar_label(bars, [f"{height:.0f}" if height >= 10 else f"{height:.1f}" for height in heights], size=7)
            daemons = [row["offloaded"] for row in chosen]
            axes.plot(where, daemons, "k_", markersize=9, label="offloaded whole" if place == 0 else None)
        axes.set_ylabel(f"ms, {threads} thread{'s' if threads > 1 else ''}")
        axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xticks(range(len(names)), names)
    figure.axes[0].legend(frameon=False, ncols=5, loc="upper left")
    figure.suptitle("The whole network on each engine, and offloaded to a daemon on the same machine")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


if __name__ == "__main__":
    main()
