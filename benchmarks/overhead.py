"""What splitting costs beyond computing.

For each network, at cut 0 and at a cut in the middle, this measures the end-to-end time less the times of head and
tail ("beyond computing"). The device runs on one core, the server on another. All figures are medians over runs in
which inferences and probes alternate.

The transfer time ("bytes") is a probe of the same size less an empty probe. Each probe follows an inference and a bare
head, so that it meets the same caches as an inference. "overhead" is the time beyond computing less the transfer time.
"an empty call" is an empty probe: a call that does nothing. "bare echo" is the time beyond computing of a bare gRPC
server with one worker process, for the same bytes and as much work as the tail, without any of the project's code. It
is a lower bound for any split over gRPC on this machine.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from examples.demo import middle_cut
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.daemon import conditions, daemon, export_missing
from benchmarks.echo import echo
from loadpart_common.engines.choice import EngineChoice
from loadpart_common.engines.mindspore.zoo import NETWORKS
from loadpart_common.graph import Value
from loadpart_common.store.engine_choice import choose_engine
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device import OffloadClient
from loadpart_device.edges.connection import Connection
from loadpart_device.local import LocalRuntime
from loadpart_device.model_cache import find_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadpart_common.tensors import Array

ROUNDS = 40
LIMIT_MILLISECONDS = 1.5
DECISION_LIMIT_MICROSECONDS = 50.0

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def main() -> None:
    export_missing()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    table = Table(
        "network", "cut", "kB", "end to end", "head", "tail", "beyond computing", "bytes", "overhead", "within",
        "an empty call", "bare echo", "bare less bytes",
        title=f"milliseconds, medians of {ROUNDS}; device on core {cores[0]}, server on core {cores[-1]}",
        header_style="bold",
    )  # fmt: skip
    decisions: list[float] = []
    worst = 0.0
    with (
        daemon("--threads", "1", cores={cores[-1]}) as server,
        echo(cores[-1]) as bare,
        tempfile.TemporaryDirectory() as cache,
    ):
        prober = Connection(Endpoint(server.target), 256 << 20)
        for name in track(NETWORKS, description="measuring", console=console, transient=True):
            with OffloadClient(server.target, name, threads=1, cache=cache) as aware:
                aware.wait_ready()
                spec = aware.graph.inputs[0]
                image = np.random.default_rng(0).integers(0, 256, spec.concrete(1), np.uint8)
                for cut in (0, middle_cut(aware.graph)):
                    nbytes = aware.graph.cut(cut).nbytes()
                    with (
                        OffloadClient(server.target, name, threads=1, cache=cache, policy=cut) as client,
                        bare_head(prober, name, Path(cache), cut, image) as head,
                    ):
                        client.wait_ready()
                        weight_bytes = sum(layer.weight_bytes for layer in aware.graph.layers[cut:])
                        row = measure(client, head, prober, partial(bare, weight_bytes), image, nbytes)
                    decisions += [aware.infer(image).timings.decide for _ in range(ROUNDS // 4)]
                    bytes_need = max(0.0, row["probe"] - row["empty"])
                    overhead = row["beyond"] - bytes_need
                    worst = max(worst, overhead)
                    cells = (row["total"], row["head"], row["tail"], row["beyond"], bytes_need, overhead)
                    table.add_row(
                        name, str(cut), f"{nbytes / 1e3:.0f}", *(f"{value:.2f}" for value in cells),
                        "yes" if overhead <= LIMIT_MILLISECONDS else "NO", f"{row['empty']:.2f}",
                        f"{row['bare']:.2f}", f"{row['bare'] - bytes_need:.2f}",
                    )  # fmt: skip
        prober.close()
    console.print(conditions())
    console.print(table)
    decision = statistics.median(decisions) * 1e6
    console.print(f"largest overhead {worst:.2f} ms, at most {LIMIT_MILLISECONDS} wanted")
    console.print(f"decision {decision:.0f} microseconds, at most {DECISION_LIMIT_MICROSECONDS:.0f} wanted")
    if worst > LIMIT_MILLISECONDS or decision > DECISION_LIMIT_MICROSECONDS:
        sys.exit(1)


@contextlib.contextmanager
def bare_head(server: Connection, name: str, cache: Path, cut: int, image: Array) -> Iterator[Callable[[], object]]:
    """Yields a function that runs the head of a cut and nothing else, on the engine that this process's clients use."""
    found = find_model([server], name, cache, 10.0, lambda _done, _total: None)
    setup, stored = choose_engine(found.stored, EngineChoice(threads=1))
    runtime = LocalRuntime(stored, setup, memory_limit_bytes=512 << 20)
    try:
        runtime.build([cut])
        runtime.wait_built()
        yield lambda: runtime.head(cut, {Value(-1, 0): image}, 1) if cut else None
    finally:
        runtime.close()


def measure(
    client: OffloadClient,
    head: Callable[[], object],
    prober: Connection,
    bare: Callable[[bytes, float], float],
    image: Array,
    nbytes: int,
) -> dict[str, float]:
    """Medians in milliseconds of an inference and its parts, a probe of `nbytes`, an empty probe and a bare echo."""
    payload = os.urandom(nbytes)
    readings: dict[str, list[float]] = {
        key: [] for key in ("total", "head", "tail", "beyond", "probe", "empty", "bare")
    }
    client.infer(image)
    for _ in range(ROUNDS):
        timings = client.infer(image).timings
        for key, seconds in (("total", timings.total), ("head", timings.head), ("tail", timings.tail)):
            readings[key].append(seconds)
        # Computed for each inference, because the times of head and tail vary more than this difference.
        readings["beyond"].append(timings.total - timings.head - timings.tail)
        # An inference, then a head: server and device find the caches as a real inference does.
        client.infer(image)
        head()
        readings["bare"].append(bare(payload, timings.tail))
        for key, body in (("probe", payload), ("empty", b"")):
            client.infer(image)
            head()
            started = time.perf_counter()
            prober.probe(body, 10.0)
            readings[key].append(time.perf_counter() - started)
    return {key: statistics.median(values) * 1e3 for key, values in readings.items()}


if __name__ == "__main__":
    main()
