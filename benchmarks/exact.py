"""Checks that splitting is exact: head on the device, tail in a real server over gRPC, at every cut of every network.

The outputs must equal those of the whole network run locally, bit for bit, on a photograph. Besides the six networks of
the zoo there are three small ones: one with a branch, so that two tensors cross; one with several inputs and outputs;
and one that adds in place. Device and server have one core and one thread each.
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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import cbook
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.daemon import conditions, daemon, export_missing
from loadpart_common.engines.choice import EngineChoice
from loadpart_common.engines.mindspore.zoo import NETWORKS
from loadpart_common.engines.registry import DEFAULT_ENGINE, ENGINES
from loadpart_common.graph import Value
from loadpart_common.planning.plan import local_plan, plan_at
from loadpart_common.store.engine_choice import choose_engine
from loadpart_common.store.model_store import ModelStore
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device.edges.connection import Connection, Tail
from loadpart_device.images import load_images
from loadpart_device.local import LocalRuntime

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.graph import Graph
    from loadpart_common.store.model_store import StoredModel
    from loadpart_common.tensors import Array

FOREIGN = ("tiny", "two", "in-place")
ROOT = Path(__file__).resolve().parent.parent
MEMORY = 256 << 20

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default=DEFAULT_ENGINE, choices=list(ENGINES), help="engine of both sides")
    parser.add_argument("--network", action="append", choices=[*NETWORKS, *FOREIGN], help="this one; may be repeated")
    options = parser.parse_args()
    export_missing()
    cores = sorted(os.sched_getaffinity(0))
    table = Table("network", "layers", "cuts", "of several tensors", "mismatches", "seconds", header_style="bold")
    tried = mismatches = 0
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "models"
        zoo = ModelStore(Path(os.environ["LOADPART_EDGE_STORE"]))
        for name in NETWORKS:
            shutil.copytree(zoo.folder / name, store / name)
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "tests.networks", Path(folder) / "own"], check=True, cwd=ROOT
        )
        for name in FOREIGN:
            shutil.copytree(Path(folder) / "own" / name, store / name)
        os.sched_setaffinity(0, {cores[0]})
        names = options.network or (*NETWORKS, *FOREIGN)
        arguments = ("--store", str(store), "--models", ",".join(names), "--threads", "1", "--engine", options.engine)
        with (
            daemon(*arguments, cores={cores[-1]}) as running,
            Progress(console=console) as bar,
        ):
            server = Connection(Endpoint(running.target), 256 << 20)
            for name in names:
                setup, stored = choose_engine(ModelStore(store).open(name), EngineChoice(options.engine, threads=1))
                cuts = stored.graph.cuts
                task = bar.add_task(name, total=len(cuts))
                started = time.monotonic()
                wrong = compare(server, name, stored, setup, partial(bar.advance, task))
                several = sum(len(cut.live) > 1 for cut in cuts)
                table.add_row(
                    name, str(stored.graph.layer_count), str(len(cuts)), str(several), str(wrong),
                    f"{time.monotonic() - started:.0f}",
                )  # fmt: skip
                tried += len(cuts)
                mismatches += wrong
            server.close()
    console.print(f"{conditions()}; engine {ENGINES[options.engine].version()}")
    console.print(table)
    console.print(f"{tried} cuts tried, {mismatches} mismatches")
    if mismatches:
        sys.exit(1)


def compare(server: Connection, name: str, stored: StoredModel, setup: EngineSetup, on_cut: Callable[[], None]) -> int:
    """Tries every cut of a network; returns for how many the outputs differ from those of the local run."""
    graph = stored.graph
    local = LocalRuntime(stored, setup, memory_limit_bytes=MEMORY)
    inputs = {Value(-1, index): array for index, array in enumerate(inputs_of(graph))}
    expected, _ = local.head(local_plan(graph), inputs, 1)
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
        for cut in graph.cuts:
            values = dict(inputs)
            if cut.index > 0:
                values.update(local.head(plan_at(graph, cut.index), inputs, 1)[0])
            if cut.index < graph.layer_count:
                answers.append(pool.submit(remote, cut.index, values))
            else:
                wrong += not all(np.array_equal(values[v], expected[v]) for v in graph.outputs)
            on_cut()
        wrong += sum(not answer.result() for answer in answers)
    local.close()
    return wrong


def inputs_of(graph: Graph) -> list[Array]:
    """A photograph for networks that take images, random numbers for the others."""
    photograph = Path(str(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    if [spec.dtype for spec in graph.inputs] == ["uint8"]:
        return [load_images([photograph], graph.inputs[0])]
    rng = np.random.default_rng(0)
    return [rng.standard_normal(spec.concrete(1)).astype(spec.dtype) for spec in graph.inputs]


if __name__ == "__main__":
    main()
