"""Workers on a Ray cluster beside a local one: the same bits at every cut on every node, and what the way there costs.

The cluster is three nodes on this machine, each at a loopback address of its own, and a head without a worker. For the
bits, a daemon has its one worker on each node in turn. For the costs, a daemon with a local worker and one with a
worker on a node answer in turn, always the same photograph at cut 0; both daemons and all nodes have one core, the
device the other one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table

from benchmarks.daemon import Daemon, conditions, daemon, export_missing, metric
from benchmarks.exact import compare, inputs_of
from benchmarks.nodes import nodes
from benchmarks.photographs import COFFEE
from loadpart_common.engines.choice import EngineChoice
from loadpart_common.planning.plan import plan_at
from loadpart_common.store.engine_choice import choose_engine
from loadpart_common.store.model_store import ModelStore
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device.edges.connection import Connection, Tail

if TYPE_CHECKING:
    from benchmarks.nodes import Nodes
    from loadpart_common.store.model_store import StoredModel

NETWORK = "squeezenet"
NODES = 3
ROUNDS, QUICK_ROUNDS = 500, 100
QUICK = 8
"""With `--quick`, one cut in so many is tried."""

MOST_MILLISECONDS = 2.5

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"one cut in {QUICK}, {QUICK_ROUNDS} rounds")
    options = parser.parse_args()
    export_missing()
    device, server = (cores := sorted(os.sched_getaffinity(0)))[0], cores[-1]
    os.sched_setaffinity(0, {server})
    with nodes() as cluster:
        cluster.add(NODES)
        os.sched_setaffinity(0, {device})
        console.print(conditions())
        wrong = sum(try_cuts(cluster, node.address, server, QUICK if options.quick else 1) for node in cluster.live)
        more = measure(cluster, server, QUICK_ROUNDS if options.quick else ROUNDS)
    console.print(f"{wrong} mismatches on {NODES} nodes")
    console.print(f"{more:.2f} ms more at the median over a worker on a node, at most {MOST_MILLISECONDS} wanted")
    if wrong or more > MOST_MILLISECONDS:
        sys.exit(1)


def arguments(*more: str) -> tuple[str, ...]:
    return ("--models", NETWORK, "--threads", "1", "--workers", "1", *more)


def open_network() -> StoredModel:
    return ModelStore(Path(os.environ["LOADPART_EDGE_STORE"])).open(NETWORK)


def on_node(cluster: Nodes, address: str) -> tuple[str, ...]:
    """Arguments of a daemon whose worker is on one node, by the resource that Ray gives every node."""
    return arguments("--cluster", cluster.address, "--worker-resources", f"node:{address}=0.5", "--workers-max", "1")


def try_cuts(cluster: Nodes, address: str, core: int, every: int) -> int:
    """How many cuts give other bits than the device."""
    with (
        daemon(*on_node(cluster, address), cores={core}, environment=cluster.environment) as running,
        Progress(console=console, transient=True) as bar,
    ):
        setup, stored = choose_engine(open_network(), EngineChoice(threads=1))
        cuts = sorted({cut.index for cut in stored.graph.cuts[::every]} | {0})
        task = bar.add_task(f"{NETWORK} on {address}", total=len(cuts))
        server = Connection(Endpoint(running.target), 256 << 20)
        wrong = compare(server, NETWORK, stored, setup, cuts, lambda: bar.advance(task))
        server.close()
    console.print(f"{NETWORK} on {address}: {len(cuts)} cuts tried on {setup}, {wrong} mismatches")
    return wrong


class Costs(NamedTuple):
    """What a request cost, in milliseconds.

    Attributes:
        latency: At the device.
        beyond: The same without decoding and running.
        cpu: Of the daemon's processor time.
    """

    latency: list[float]
    beyond: list[float]
    cpu: float


def measure(cluster: Nodes, core: int, rounds: int) -> float:
    """Prints what a worker on a node costs more than a local one; gives the difference of the medians in ms."""
    for node in cluster.live[1:]:
        cluster.lose(node)
    on_last = (*on_node(cluster, cluster.live[0].address), "--metrics-listen", "127.0.0.1:0")
    with (
        daemon(*arguments(), cores={core}) as local,
        daemon(*on_last, cores={core}, environment=cluster.environment) as remote,
    ):
        while metric(remote.metrics, "loadpart_edge_tails_to_build"):
            time.sleep(0.1)
        costs = alternate({"local": local, "on a node": remote}, rounds)
        table = Table(
            "worker", "median ms", "95th percentile", "beyond the tail", "daemon's processor ms", "ready s",
            title=f"{NETWORK}, a photograph of 151 kB at cut 0, {rounds} requests each, in turn", header_style="bold",
        )  # fmt: skip
        for (name, cost), running in zip(costs.items(), (local, remote), strict=True):
            table.add_row(
                name, f"{statistics.median(cost.latency):.2f}", f"{statistics.quantiles(cost.latency, n=20)[-1]:.2f}",
                f"{statistics.median(cost.beyond):.2f}", f"{cost.cpu:.2f}", f"{running.ready_seconds:.1f}",
            )  # fmt: skip
        console.print(table)
        (worker,) = cluster.live[0].of("loadpart_edge.workers.local.main")
        megabytes = {process: process.memory_full_info().uss / 1e6 for process in cluster.live[0].processes}
        others = sum(megabytes.values()) - megabytes[worker]
        console.print(
            f"memory of a node: {others:.0f} MB of Ray and its actor, {megabytes[worker]:.0f} MB of the worker"
        )
        niceness = worker.nice(), psutil.Process(remote.process.pid).nice()
        console.print("niceness of worker and daemon: {} and {}".format(*niceness))
    local_cost, remote_cost = costs.values()
    return statistics.median(remote_cost.latency) - statistics.median(local_cost.latency)


def alternate(daemons: dict[str, Daemon], rounds: int) -> dict[str, Costs]:
    """Asks all daemons in turn."""
    stored = open_network()
    graph = stored.graph
    inputs = inputs_of(graph, COFFEE)
    tail = Tail.of(graph, NETWORK, stored.manifest.digest, plan_at(graph, 0))
    servers = {name: Connection(Endpoint(running.target), 256 << 20) for name, running in daemons.items()}
    processes = {name: psutil.Process(running.process.pid) for name, running in daemons.items()}
    costs: dict[str, Costs] = {name: Costs([], [], 0.0) for name in daemons}
    for _ in range(20):
        for server in servers.values():
            server.infer(tail, inputs, 60)
    before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    for _ in track(range(rounds), description="in turn", console=console, transient=True):
        for name, server in servers.items():
            started = time.perf_counter()
            reply = server.infer(tail, inputs, 60)
            seconds = time.perf_counter() - started
            costs[name].latency.append(seconds * 1e3)
            costs[name].beyond.append((seconds - reply.decode_seconds - reply.tail_seconds) * 1e3)
    for name, process in processes.items():
        cpu = (sum(process.cpu_times()[:2]) - before[name]) / rounds * 1e3
        costs[name] = costs[name]._replace(cpu=cpu)
        servers[name].close()
    return costs


if __name__ == "__main__":
    main()
