"""Checks that splitting is exact: head on the device, tail in a real server over gRPC, at every cut of every network.

The outputs must equal those of the whole network run locally, bit for bit, on a photograph. Besides the zoo's networks
there are three small ones (one with a branch, so that two tensors cross; one with several inputs and outputs; and one
that adds in place) and ONNX models that packages ship. Each engine runs all of them that it takes; device and server
have one core and one thread each. Then whole networks are run on each engine, which shows how far apart these are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.daemon import conditions, daemon, export_missing
from benchmarks.onnx_models import MODELS, add_shipped
from benchmarks.photographs import COFFEE, labelled
from loadpart_common.engines.choice import EngineChoice
from loadpart_common.engines.mindspore.zoo import NETWORKS
from loadpart_common.engines.registry import ENGINES
from loadpart_common.graph import Value
from loadpart_common.planning.plan import plan_at
from loadpart_common.store.engine_choice import choose_engine
from loadpart_common.store.model_store import ModelStore
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device.edges.connection import Connection, Tail
from loadpart_device.images import load_images
from loadpart_device.local import LocalRuntime

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.graph import Graph
    from loadpart_common.store.model_store import StoredModel
    from loadpart_common.tensors import Array

FOREIGN = ("tiny", "two", "in-place")
ALL = (*NETWORKS, *FOREIGN, *MODELS)
ROOT = Path(__file__).resolve().parent.parent
MEMORY = 256 << 20
QUICK = 8
"""With `--quick`, one cut in so many is tried."""

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", action="append", choices=list(ENGINES), help="this one; may be repeated")
    parser.add_argument("--network", action="append", choices=ALL, help="this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help=f"one cut in {QUICK}")
    options = parser.parse_args()
    export_missing()
    cores = sorted(os.sched_getaffinity(0))
    engines = options.engine or list(ENGINES)
    names = options.network or ALL
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        store = ModelStore(Path(folder) / "models")
        fill(store, Path(folder) / "own")
        os.sched_setaffinity(0, {cores[0]})
        console.print(conditions())
        for engine in engines:
            taken = [name for name in names if takes(engine, store.open(name))]
            wrong += try_cuts(engine, taken, store, cores[-1], every=QUICK if options.quick else 1)
        if len(engines) > 1:
            compare_engines(engines, names, store)
    if wrong:
        sys.exit(1)


def fill(store: ModelStore, own: Path) -> None:
    """Puts all networks into a store."""
    zoo = ModelStore(Path(os.environ["LOADPART_EDGE_STORE"]))
    for name in NETWORKS:
        shutil.copytree(zoo.folder / name, store.folder / name)
    subprocess.run([sys.executable, "-W", "ignore", "-m", "tests.networks", own], check=True, cwd=ROOT)
    for name in FOREIGN:
        shutil.copytree(own / name, store.folder / name)
    add_shipped(store)


def takes(engine: str, stored: StoredModel) -> bool:
    return stored.manifest.format in ENGINES[engine].formats


def try_cuts(engine: str, names: Sequence[str], store: ModelStore, core: int, *, every: int) -> int:
    """Tries the cuts of all networks on one engine, and prints a table; returns how many are wrong."""
    table = Table(
        "network", "layers", "cuts", "tried", "of several tensors", "mismatches", "seconds",
        title=ENGINES[engine].version(), header_style="bold",
    )  # fmt: skip
    tried = mismatches = 0
    arguments = ("--store", str(store.folder), "--models", ",".join(names), "--threads", "1", "--engine", engine)
    with daemon(*arguments, cores={core}) as running, Progress(console=console) as bar:
        server = Connection(Endpoint(running.target), 256 << 20)
        for name in names:
            setup, stored = choose_engine(store.open(name), EngineChoice(engine, threads=1))
            cuts = sorted({cut.index for cut in stored.graph.cuts[::every]} | {0, stored.graph.layer_count})
            task = bar.add_task(name, total=len(cuts))
            started = time.monotonic()
            wrong = compare(server, name, stored, setup, cuts, partial(bar.advance, task))
            several = sum(len(stored.graph.cut(cut).live) > 1 for cut in cuts)
            table.add_row(
                name, str(stored.graph.layer_count), str(len(stored.graph.cuts)), str(len(cuts)), str(several),
                str(wrong), f"{time.monotonic() - started:.0f}",
            )  # fmt: skip
            tried += len(cuts)
            mismatches += wrong
        server.close()
    console.print(table)
    console.print(f"{engine}: {tried} cuts tried, {mismatches} mismatches")
    return mismatches


def compare(
    server: Connection,
    name: str,
    stored: StoredModel,
    setup: EngineSetup,
    cuts: Sequence[int],
    on_cut: Callable[[], None],
) -> int:
    """Tries cuts of a network; returns for how many the outputs differ from those of the local run."""
    graph = stored.graph
    local = LocalRuntime(stored, setup, memory_limit_bytes=MEMORY)
    inputs = {Value(-1, index): array for index, array in enumerate(inputs_of(graph, COFFEE))}
    expected, _ = local.head(graph.layer_count, inputs, 1)
    wrong = 0

    def remote(cut: int, values: dict[Value, Array]) -> bool:
        """Whether the outputs of head and tail equal those of the local run."""
        arrays = [values[value] for value in graph.cut(cut).live]
        tail = Tail.of(graph, name, stored.manifest.digest, plan_at(graph, cut))
        reply = server.infer(tail, arrays, 120)
        values.update(zip(graph.tail(cut).outputs, reply.outputs, strict=True))
        return all(np.array_equal(values[v], expected[v]) for v in graph.outputs if v.layer >= 0)

    with ThreadPoolExecutor(1) as pool:  # the server builds a tail while the device builds the next head
        answers = []
        for cut in cuts:
            values = dict(inputs)
            if cut > 0:
                values.update(local.head(cut, inputs, 1)[0])
            if cut < graph.layer_count:
                answers.append(pool.submit(remote, cut, values))
            else:
                wrong += not all(np.array_equal(values[v], expected[v]) for v in graph.outputs)
            on_cut()
        wrong += sum(not answer.result() for answer in answers)
    local.close()
    return wrong


def compare_engines(engines: Sequence[str], names: Sequence[str], store: ModelStore) -> None:
    """Prints how far the outputs of whole networks on each engine are from those on the first one that takes them."""
    photographs = [COFFEE, *labelled()]
    table = Table(
        "network", "reference", "engine", "largest difference", "same top class",
        title=f"share of the largest output, over {len(photographs)} photographs", header_style="bold",
    )  # fmt: skip
    for name in names:
        taking = [engine for engine in engines if takes(engine, store.open(name))]
        outputs = {engine: run_whole(engine, store.open(name), photographs) for engine in taking}
        reference = outputs[taking[0]]
        for engine in taking[1:]:
            pairs = list(zip(outputs[engine], reference, strict=True))
            largest = max(float(np.abs(other).max()) for other in reference)
            difference = max(float(np.abs(one - other).max()) for one, other in pairs) / largest
            same = np.mean([one.argmax() == other.argmax() for one, other in pairs])
            table.add_row(name, taking[0], engine, f"{difference:.1e}", f"{same:.0%}")
    console.print(table)


def run_whole(engine: str, stored: StoredModel, photographs: Sequence[Path]) -> list[Array]:
    """The first output of a network for each photograph."""
    setup, stored = choose_engine(stored, EngineChoice(engine, threads=1))
    graph = stored.graph
    local = LocalRuntime(stored, setup, memory_limit_bytes=MEMORY)
    outputs = []
    for photograph in photographs:
        inputs = {Value(-1, index): array for index, array in enumerate(inputs_of(graph, photograph))}
        values, _ = local.head(graph.layer_count, inputs, 1)
        outputs.append(values[graph.outputs[0]].astype(np.float64))
    local.close()
    return outputs


def inputs_of(graph: Graph, photograph: Path) -> list[Array]:
    """A photograph for networks that take images, as bytes or as numbers around 0; random numbers for the others."""
    (first, *_) = graph.inputs
    if len(graph.inputs) == 1 and len(first.shape) == 4:
        if first.dtype == "uint8":
            return [load_images([photograph], first)]
        batch, channels, height, width = first.shape
        images = load_images([photograph], replace(first, dtype="uint8", shape=(batch, height, width, channels)))
        return [np.ascontiguousarray((images.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2), first.dtype)]
    rng = np.random.default_rng(photograph.stat().st_size)
    return [(rng.random(spec.concrete(1)) * 100).astype(spec.dtype) for spec in graph.inputs]


if __name__ == "__main__":
    main()
