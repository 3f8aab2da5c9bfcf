"""The server's load, predicted and measured: with other clients, with a hog on its core, and after a load ends.

The server runs on the last core, the device and the other clients on the first. Before each inference the expected
server time is noted (backlog plus slow-down times the tail), and compared with the measured time of queueing and tail.
Then two more things are measured: how soon a device that computes locally because of a load offloads again after it
ends, and how often a device changes plans while link and load stay the same.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.daemon import Daemon, conditions, daemon, export_missing
from benchmarks.testbed import SlowDevice, slow_device
from loadpart_common.planning.plan import DEFAULT_CODEC, PlanKey
from loadpart_common.store.model_store import ModelStore
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device import OffloadClient
from loadpart_device.edges.connection import Connection, Tail

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadpart_common.tensors import Array

NETWORKS = ("squeezenet", "alexnet")
ROUNDS = 40
STEADY = 300
SHARE = 0.25  # of a core that a slow device gets
ERROR_LIMIT, RETURN_LIMIT_SECONDS, CHANGES_LIMIT = 0.20, 2.0, 1.0
PAUSE_SECONDS = 0.03  # mean pause of a client between its requests

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


def main() -> None:
    export_missing()
    cores = sorted(os.sched_getaffinity(0))
    with (
        daemon("--threads", "1", "--models", ",".join(NETWORKS), cores={cores[-1]}) as server,
        tempfile.TemporaryDirectory() as cache,
    ):
        os.sched_setaffinity(0, {cores[0]})
        errors = predictions(server, cache, cores[-1])
        back = returns(server, cache, cores[-1])
        changes = steady(server, cache)
    console.print(conditions())
    console.print(f"largest median error {max(errors):.1%}, at most {ERROR_LIMIT:.0%} wanted")
    console.print(f"slowest return {max(back):.2f} s, at most {RETURN_LIMIT_SECONDS:.0f} s wanted")
    console.print(f"most changes of plan in 100 inferences {max(changes):.2f}, at most {CHANGES_LIMIT:.0f} wanted")
    if max(errors) > ERROR_LIMIT or max(back) > RETURN_LIMIT_SECONDS or max(changes) > CHANGES_LIMIT:
        sys.exit(1)


def predictions(server: Daemon, cache: str, core: int) -> list[float]:
    """Median absolute errors of the predicted server time."""
    table = Table(
        "network", "clients", "hog", "server time, ms", "10 to 90 %", "predicted", "slow-down", "median error",
        title=f"{ROUNDS} inferences each, at random moments", header_style="bold",
    )  # fmt: skip
    errors = []
    cases = list(itertools.product(NETWORKS, (False, True), range(5)))
    for name, hog, number in track(cases, description="predicting", console=console, transient=True):
        with OffloadClient(server.target, name, threads=1, cache=cache, policy="offload") as client:
            client.wait_ready()
            with clients(server, name, number), hogs(core, int(hog)):
                measured, expected, slow_downs = observe(client, server, name)
        ratio = np.abs(expected / measured - 1)
        errors.append(float(np.median(ratio)))
        low, middle, high = np.percentile(measured * 1e3, (10, 50, 90))
        table.add_row(
            name, str(number), "yes" if hog else "", f"{middle:.1f}", f"{low:.1f} to {high:.1f}",
            f"{np.median(expected) * 1e3:.1f}", f"{np.median(slow_downs):.2f}", f"{errors[-1]:.1%}",
        )  # fmt: skip
    console.print(table)
    return errors


def observe(client: OffloadClient, server: Daemon, name: str) -> tuple[Array, Array, Array]:
    """Measured and expected seconds on the server, and the slow-downs that the server reported."""
    image = np.zeros(client.graph.inputs[0].concrete(1), np.uint8)
    lists, rng = Connection(Endpoint(server.target), 1 << 28), random.Random(0)
    measured, expected, slow_downs = [], [], []
    time.sleep(1.5)  # by now the load runs, and the server has measured it
    tail = lists.list_models(5)[name].tail_seconds[0]
    for _ in range(ROUNDS):
        time.sleep(rng.expovariate(1 / 0.1))
        load = client.load
        timings = client.infer(image).timings
        assert load is not None
        measured.append(timings.queue + timings.tail)
        expected.append(load.backlog_seconds + load.slow_down * tail)
        slow_downs.append(load.slow_down)
    lists.close()
    return np.array(measured), np.array(expected), np.array(slow_downs)


def returns(server: Daemon, cache: str, core: int) -> list[float]:
    """Seconds from the end of a load that made a device compute locally until it offloads again."""
    seconds = []
    table = Table(
        "load",
        "local under it",
        "seconds until it offloads again",
        title="a slow device, after a load",
        header_style="bold",
    )
    for what, number, hog in (("10 clients", 10, 0), ("6 hogs", 0, 6), ("4 clients and 4 hogs", 4, 4)):
        with (
            slow_device(SHARE) as slow,
            OffloadClient(server.target, "squeezenet", threads=1, cache=cache) as client,
        ):
            client.wait_ready()
            image = np.zeros(client.graph.inputs[0].concrete(1), np.uint8)
            await_location(client, image, "offload")
            with clients(server, "squeezenet", number, slow), hogs(core, hog, slow):
                await_location(client, image, "local")
                time.sleep(3)
                kept = [client.infer(image).plan.location for _ in range(20)]
            started = time.perf_counter()
            await_location(client, image, "offload")
            seconds.append(time.perf_counter() - started)
        table.add_row(what, f"{kept.count('local')} of {len(kept)}", f"{seconds[-1]:.2f}")
    console.print(table)
    return seconds


def await_location(client: OffloadClient, image: Array, location: str, limit: float = 30.0) -> None:
    """Infers until the plan has this location."""
    end = time.perf_counter() + limit
    while (result := client.infer(image)).plan.location != location:
        if time.perf_counter() > end:
            raise RuntimeError(f"no {location} plan within {limit:.0f} s: {result.plan.reason}")


def steady(server: Daemon, cache: str) -> list[float]:
    """Changes of plan in 100 inferences, while link and load stay the same."""
    rates = []
    table = Table(
        "network",
        "clients",
        "device",
        "plans",
        "changes in 100",
        title=f"{STEADY} inferences each",
        header_style="bold",
    )
    cases = list(itertools.product(NETWORKS, (0, 1, 2), (1.0, SHARE)))
    for name, number, share in track(cases, description="steady", console=console, transient=True):
        with slow_device(share) as slow, OffloadClient(server.target, name, threads=1, cache=cache) as client:
            client.wait_ready()
            image = np.zeros(client.graph.inputs[0].concrete(1), np.uint8)
            with clients(server, name, number, slow):
                time.sleep(1.5)
                for _ in range(10):
                    client.infer(image)
                taken = [client.infer(image).plan for _ in range(STEADY)]
        changes = [after for before, after in itertools.pairwise(taken) if before.cut != after.cut]
        for plan in changes:
            console.print(f"{name}, {number} clients: to {plan.reason}")
        cuts = [plan.cut for plan in taken]
        rates.append(100 * len(changes) / STEADY)
        plans = ", ".join(f"{cut} ({cuts.count(cut)})" for cut in sorted(set(cuts)))
        table.add_row(name, str(number), "slow" if share < 1 else "quick", plans, f"{rates[-1]:.2f}")
    console.print(table)
    return rates


@contextlib.contextmanager
def clients(server: Daemon, name: str, number: int, slow: SlowDevice | None = None) -> Iterator[None]:
    """Other clients, which send whole images and pause for a random time after each answer."""
    with processes(
        [[sys.executable, "-m", "benchmarks.load", server.target, name, str(seed)] for seed in range(number)], slow
    ):
        yield


@contextlib.contextmanager
def hogs(core: int, number: int, slow: SlowDevice | None = None) -> Iterator[None]:
    """Processes that compute without pause on a core."""
    with processes(
        [["taskset", "-c", str(core), sys.executable, "-c", "while True: pass"] for _ in range(number)], slow
    ):
        yield


@contextlib.contextmanager
def processes(commands: list[list[str]], slow: SlowDevice | None) -> Iterator[None]:
    running = [subprocess.Popen(command) for command in commands]
    try:
        if slow is not None:
            for process in running:
                slow.release(process.pid)
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def client(target: str, name: str, seed: int) -> None:
    """One of the other clients; runs until it is killed."""
    rng, server = random.Random(seed), Connection(Endpoint(target), 1 << 28)
    stored = ModelStore(Path(os.environ["LOADPART_EDGE_STORE"])).open(name)
    tail = Tail.of(stored.graph, name, stored.manifest.digest, PlanKey(0, DEFAULT_CODEC))
    image = np.zeros((1, 224, 224, 3), np.uint8)
    while True:
        server.infer(tail, [image], 60)
        time.sleep(rng.expovariate(1 / PAUSE_SECONDS))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        client(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        main()
