"""Workers on a Ray cluster beside a local one: the same bits at every cut on every node, and what the way there costs.

The cluster is three nodes on this machine, each at a loopback address of its own, and a head without a worker. For the
bits, a daemon has its one worker on each node in turn. For the costs, a daemon with a local worker and one with a
worker on a node answer in turn, always the same photograph at cut 0; both daemons and all nodes have one core, the
device the other one. In the same turns a bare actor of Ray's, on the same node and called from another process on the
server's core, takes as many bytes and gives back as many as an output has: no worker behind Ray can be quicker.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
from loadpart_edge.workers.cluster import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection as Pipe

    from benchmarks.nodes import Nodes
    from loadpart_common.store.model_store import StoredModel

NETWORK = "squeezenet"
NODES = 3
ROUNDS, QUICK_ROUNDS = 500, 100
QUICK = 8
"""With `--quick`, one cut in so many is tried."""

MOST_MILLISECONDS = 2.5
NEAR_THE_FLOOR = 1.25
ANSWER_BYTES = 4000

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
        more, floor = measure(cluster, server, QUICK_ROUNDS if options.quick else ROUNDS)
    console.print(f"{wrong} mismatches on {NODES} nodes")
    most = max(MOST_MILLISECONDS, NEAR_THE_FLOOR * floor)
    console.print(
        f"{more:.2f} ms more at the median with a worker on a node; at most {MOST_MILLISECONDS} wanted, or "
        f"{NEAR_THE_FLOOR} times what a bare actor takes, which is {floor:.2f}"
    )
    if wrong or more > most:
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


def measure(cluster: Nodes, core: int, rounds: int) -> tuple[float, float]:
    """Prints what a worker on a node costs more than a local one.

    Returns:
        By how many ms the medians differ, and what a bare actor takes.
    """
    for node in cluster.live[1:]:
        cluster.lose(node)
    on_last = (*on_node(cluster, cluster.live[0].address), "--metrics-listen", "127.0.0.1:0")
    with (
        daemon(*arguments(), cores={core}) as local,
        daemon(*on_last, cores={core}, environment=cluster.environment) as remote,
        bare_actor(cluster, core) as call_bare,
    ):
        while metric(remote.metrics, "loadpart_edge_tails_to_build"):
            time.sleep(0.1)
        costs, bare = alternate({"local": local, "on a node": remote}, call_bare, rounds)
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
        console.print(f"a bare actor: {statistics.median(bare):.2f} ms")
        (worker,) = cluster.live[0].of("loadpart_edge.workers.local.main")
        megabytes = {process: process.memory_full_info().uss / 1e6 for process in cluster.live[0].processes}
        others = sum(megabytes.values()) - megabytes[worker]
        console.print(
            f"memory of a node: {others:.0f} MB of Ray and its actor, {megabytes[worker]:.0f} MB of the worker"
        )
        niceness = worker.nice(), psutil.Process(remote.process.pid).nice()
        console.print("niceness of worker and daemon: {} and {}".format(*niceness))
    local_cost, remote_cost = costs.values()
    more = statistics.median(remote_cost.beyond) - statistics.median(local_cost.beyond)
    return more, statistics.median(bare)


@contextlib.contextmanager
def bare_actor(cluster: Nodes, core: int) -> Iterator[Callable[[bytes], float]]:
    """Yields what calls a bare actor on the last node from a process of its own, and gives the milliseconds."""
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_call_bare, args=(theirs, cluster.address, cluster.environment, core))
    process.start()
    theirs.close()  # so that its end is noticed
    ours.recv()  # it is ready

    def call(data: bytes) -> float:
        ours.send_bytes(data)
        return float(ours.recv())

    try:
        yield call
    finally:
        ours.send_bytes(b"")
        process.join()


def _call_bare(pipe: Pipe, address: str, variables: dict[str, str], core: int) -> None:
    os.sched_setaffinity(0, {core})
    os.environ.update(variables)
    environment.prepare(address)
    import ray

    class Echo:  # here, so that Ray takes it to the node by what it is and not by its name
        async def give(self, data: bytes) -> bytes:
            return data[:ANSWER_BYTES]

    async def serve() -> None:
        actor: Any = ray.remote(Echo).options(num_cpus=1).remote()
        await actor.give.remote(b"")
        pipe.send("ready")
        while data := pipe.recv_bytes():
            started = time.perf_counter()
            await actor.give.remote(data)
            pipe.send((time.perf_counter() - started) * 1e3)

    ray.init(address=address, configure_logging=False, log_to_driver=False)
    asyncio.run(serve())
    ray.shutdown()


def alternate(
    daemons: dict[str, Daemon], call_bare: Callable[[bytes], float], rounds: int
) -> tuple[dict[str, Costs], list[float]]:
    """Asks all daemons and the bare actor in turn; gives what each cost."""
    stored = open_network()
    graph = stored.graph
    inputs = inputs_of(graph, COFFEE)
    tail = Tail.of(graph, NETWORK, stored.manifest.digest, plan_at(graph, 0))
    servers = {name: Connection(Endpoint(running.target), 256 << 20) for name, running in daemons.items()}
    processes = {name: psutil.Process(running.process.pid) for name, running in daemons.items()}
    costs: dict[str, Costs] = {name: Costs([], [], 0.0) for name in daemons}
    data = bytes(inputs[0])
    bare: list[float] = []
    for _ in range(20):
        call_bare(data)
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
        bare.append(call_bare(data))
    for name, process in processes.items():
        cpu = (sum(process.cpu_times()[:2]) - before[name]) / rounds * 1e3
        costs[name] = costs[name]._replace(cpu=cpu)
        servers[name].close()
    return costs, bare


if __name__ == "__main__":
    main()
