"""Simulates a thousand devices on one server, with the product's own decisions, load figures and policies.

Nothing is sent or computed: time is simulated. Each device infers repeatedly, with random pauses. If all offloaded,
they would ask for 70 to 400 % of what the server can answer. The devices are either alike or differ in speed and link.
For each policy the benchmark prints the mean latency, its ratio to that of the best fixed assignment, and how much the
length of the queue varies. In a fixed assignment, a number of devices, those that gain most, always offload; several
numbers are tried.
"""

from __future__ import annotations

import heapq
import itertools
import os
import random
import statistics
import sys
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.daemon import export_missing
from loadpart.v1 import offload_pb2
from loadpart_common.latency.curves import Curves
from loadpart_common.latency.model import shipped_model
from loadpart_common.latency.slow_down import SlowDown
from loadpart_common.planning.plan import PlanKey, Point, points
from loadpart_common.planning.plans import Plans, Weights
from loadpart_common.planning.winners import winning_plans
from loadpart_common.store.model_store import ModelStore
from loadpart_device.deciding.policies import BandwidthOnly, LoadAware
from loadpart_device.deciding.state import EdgeState, World
from loadpart_device.edges.link import LinkReading
from loadpart_device.edges.load import LoadFollower, ServerLoad
from loadpart_edge.scheduling.backlog import Backlog
from loadpart_edge.scheduling.devices import ActiveDevices
from loadpart_edge.scheduling.job import Owner
from loadpart_edge.scheduling.status import is_large_change, least_gap_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICES = 1000
SECONDS, WARM_UP_SECONDS = 180.0, 30.0
PERIOD_SECONDS = 0.5
NETWORK = "squeezenet"
OFFERED = (0.7, 1.5, 4.0)
"""Load if all devices offload every inference, as a share of what the server can answer."""
ANSWER_BYTES = 4000
NOISE = 0.05
LIMIT, SWING_LIMIT = 1.10, 1.25

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


class Simulation:
    """A simulated clock with a queue of future events."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, delay: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), happen))

    def run(self, seconds: float) -> None:
        while self._events and self._events[0][0] < seconds:
            self.now, _, happen = heapq.heappop(self._events)
            happen()


@dataclass
class Job:
    predicted: float
    arrived: float
    done: Callable[[float, float], None]


class Server:
    """One worker that runs jobs first in, first out; its load figures are computed by the daemon's code."""

    def __init__(self, simulation: Simulation, seed: int) -> None:
        self.simulation, self.rng = simulation, random.Random(seed)
        self.devices: list[Device] = []
        self.queue: deque[Job] = deque()
        self.running: Job | None = None
        self.started = 0.0
        self.slow_down = SlowDown(lambda: simulation.now)
        self.means = Backlog(lambda: simulation.now)
        self.active = ActiveDevices(lambda: simulation.now)
        self.told_at, self.told, self.due = float("-inf"), 0.0, float("-inf")
        self.lengths: list[int] = []
        simulation.at(0, self.period)
        simulation.at(0, self.sample)

    @property
    def backlog(self) -> float:
        running = 0.0
        if self.running is not None:
            left = self.running.predicted * self.slow_down.value - (self.simulation.now - self.started)
            running = max(0.0, left)
        return running + sum(job.predicted for job in self.queue) * self.slow_down.value

    def take(self, job: Job, device: str) -> None:
        self.active.seen(Owner(device))
        self.queue.append(job)
        self.serve()
        self.changed()

    def serve(self) -> None:
        if self.running is None and self.queue:
            job = self.running = self.queue.popleft()
            self.started = self.simulation.now
            seconds = job.predicted * self.rng.lognormvariate(0, NOISE)
            self.simulation.at(seconds, lambda: self.finish(job, seconds))

    def finish(self, job: Job, seconds: float) -> None:
        self.running = None
        self.slow_down.record(job.predicted, seconds)
        waited = self.started - job.arrived
        self.serve()
        self.changed()
        job.done(waited, seconds)

    def changed(self) -> None:
        self.means.changed(self.backlog, float(self.running is not None))
        if self.must_tell():
            wait = self.told_at + least_gap_seconds(len(self.devices)) - self.simulation.now
            if wait <= 0:
                self.publish()
            elif self.due < self.simulation.now:
                self.due = self.simulation.now + wait
                self.simulation.at(wait, self.publish_late)

    def publish_late(self) -> None:
        if self.must_tell():
            self.publish()

    def must_tell(self) -> bool:
        return is_large_change(self.told, self.simulation.now - self.told_at, self.backlog)

    def status(self) -> offload_pb2.ServerStatus:
        return offload_pb2.ServerStatus(
            slow_down=self.slow_down.value,
            backlog_seconds=self.backlog,
            mean_backlog_seconds=self.means.mean_seconds,
            externality_seconds=self.means.externality_seconds,
            active_devices=self.active.count,
        )

    def publish(self) -> None:
        self.told_at, self.told = self.simulation.now, self.backlog
        status = self.status()
        for device in self.devices:
            device.load.status_received(status)

    def period(self) -> None:
        self.publish()
        self.simulation.at(PERIOD_SECONDS, self.period)

    def sample(self) -> None:
        if self.simulation.now > WARM_UP_SECONDS:
            self.lengths.append(len(self.queue))
        self.simulation.at(0.02, self.sample)


@dataclass
class Device:
    """A device that infers, pauses for a random time, and infers again."""

    name: str
    simulation: Simulation
    server: Server
    plans: Plans
    link: LinkReading
    slow_down: float
    pause: float
    rng: random.Random
    policy: LoadAware | None  # None: the device always uses the plan `fixed`
    fixed: Point | None = None
    latencies: list[float] = field(default_factory=list)
    remote: int = 0
    changes: int = 0
    last: PlanKey | None = None

    def __post_init__(self) -> None:
        self.load = LoadFollower(lambda: self.simulation.now)
        self.simulation.at(self.rng.uniform(0, self.pause), self.infer)

    def infer(self) -> None:
        started = self.simulation.now
        point = self.fixed or self.choose()
        self.changes += self.last is not None and point.key != self.last and started > WARM_UP_SECONDS
        self.last = point.key
        head = point.device_seconds * self.slow_down * self.rng.lognormvariate(0, NOISE)
        if point.key.is_local:
            self.simulation.at(head, lambda: self.end(started))
            return
        up = point.uplink_bytes * self.link.seconds_per_byte * self.rng.lognormvariate(0, NOISE)
        back = self.link.round_trip_seconds / 2

        def done(waited: float, seconds: float) -> None:
            status = self.server.status()

            def answered() -> None:
                self.load.status_received(status)
                self.load.reply_received(waited, seconds)
                self.end(started)

            self.simulation.at(back, answered)

        arrives = head + up + back
        self.remote += started > WARM_UP_SECONDS
        self.simulation.at(
            arrives, lambda: self.server.take(Job(point.server_seconds, self.simulation.now, done), self.name)
        )

    def choose(self) -> Point:
        assert self.policy is not None
        state = EdgeState("server", self.plans, self.link, self.load.now(), None)
        world = World((state,), self.slow_down, self.plans.points[-1].key, ANSWER_BYTES)
        position = self.plans.position(self.policy.choose(world, 1).chosen.plan)
        assert position is not None
        return self.plans.points[position]

    def end(self, started: float) -> None:
        if started > WARM_UP_SECONDS:
            self.latencies.append(self.simulation.now - started)
        self.simulation.at(self.rng.expovariate(1 / self.pause), self.infer)


@dataclass(frozen=True)
class Outcome:
    mean_seconds: float
    remote_share: float
    queue_mean: float
    queue_variation: float
    changes: float


class AtOnce(LoadAware):
    """Load-aware without random keeping of plans: every device changes as soon as another plan is better."""

    def _keeps_by_chance(self, load: ServerLoad, server_seconds: float, since_seconds: float) -> bool:  # noqa: ARG002
        return False


class Selfish(AtOnce):
    """As `AtOnce`, and each device counts only its own latency, not the waiting that it causes for others."""

    def weights(self, world: World, link: LinkReading, load: ServerLoad, batch: int) -> Weights:
        """See `LoadAware.weights`."""
        return super().weights(world, link, load._replace(devices=1), batch)


def simulate(plans: Plans, offered: float, policy: type[LoadAware] | int, *, alike: bool, seed: int = 0) -> Outcome:
    """Simulates a fleet of devices.

    Args:
        plans: The plans of the network that all devices run.
        offered: Load if all devices offload every inference, as a share of what the server can answer.
        policy: The policy of all devices; a number makes that many of them, those that gain most, always offload.
        alike: Whether all devices have the same speed and link.
        seed: Seed of the devices, their pauses and the noise.
    """
    simulation = Simulation()
    server = Server(simulation, seed)
    tail = plans.points[0].server_seconds
    pause = DEVICES * tail / offered
    rng = random.Random(seed)
    fleet = []
    for number in range(DEVICES):
        first, second = (0.5, 0.5) if alike else (rng.random(), rng.random())
        link = LinkReading(0.004, 8e-6 / (4 * 16**first))  # 4 to 64 Mbit/s
        slow_down = 4 * 4**second  # 4 to 16 times slower than the server
        fleet.append((link, slow_down, random.Random(seed * DEVICES + number)))
    offloads: set[int] = set()
    if isinstance(policy, int):
        gains = sorted(range(DEVICES), key=lambda number: gain(plans, *fleet[number][:2]))
        offloads = {number for number in gains[DEVICES - policy :] if gain(plans, *fleet[number][:2]) > 0}
    for number, (link, slow_down, source) in enumerate(fleet):
        chosen = None if isinstance(policy, int) else policy(source, lambda: simulation.now)
        fixed = None if chosen else best(plans, link, slow_down) if number in offloads else plans.points[-1]
        server.devices.append(
            Device(str(number), simulation, server, plans, link, slow_down, pause, source, chosen, fixed)
        )
    simulation.run(SECONDS)
    latencies = [latency for device in server.devices for latency in device.latencies]
    mean = statistics.fmean(server.lengths)
    return Outcome(
        statistics.fmean(latencies),
        sum(device.remote for device in server.devices) / len(latencies),
        mean,
        statistics.pstdev(server.lengths) / mean if mean else 0.0,
        100 * sum(device.changes for device in server.devices) / len(latencies),
    )


def weights(link: LinkReading, slow_down: float) -> Weights:
    return Weights(slow_down, link.seconds_per_byte, 1.0, link.round_trip_seconds)


def best(plans: Plans, link: LinkReading, slow_down: float) -> Point:
    """The best remote plan when the server is idle."""
    remote = Plans([point for point in plans.points if not point.key.is_local])
    costs = remote.costs(weights(link, slow_down))
    return remote.points[costs.index(min(costs))]


def gain(plans: Plans, link: LinkReading, slow_down: float) -> float:
    """Seconds that a device saves with the best remote plan on an idle server, compared with computing locally."""
    seconds = plans.costs(weights(link, slow_down))
    return seconds[-1] - min(seconds[:-1])


def main() -> None:
    export_missing()
    graph = ModelStore(Path(os.environ["LOADPART_EDGE_STORE"])).open(NETWORK).graph
    curves = Curves(graph, shipped_model())
    plans = Plans(winning_plans(points(graph, curves.head_seconds({}), curves.tail_seconds({}))))
    table = Table(
        "devices, offered", "way", "mean ms", "of best fixed", "remote", "queue", "its variation", "changes in 100",
        title=f"{DEVICES} devices, {NETWORK}, {SECONDS - WARM_UP_SECONDS:.0f} s simulated", header_style="bold",
    )  # fmt: skip
    worst, swing = 0.0, 0.0
    for alike, offered in itertools.product((False, True), OFFERED):
        numbers = [round(DEVICES * share / offered) for share in (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)]
        what = f"{'alike' if alike else 'various'}, {offered:.0%}"
        fixed = {
            min(number, DEVICES): simulate(plans, offered, min(number, DEVICES), alike=alike)
            for number in track(numbers, description=what, console=console, transient=True)
        }
        number, optimum = min(fixed.items(), key=lambda item: item[1].mean_seconds)
        ways = {f"best fixed: {number} offload": optimum, "all local": simulate(plans, offered, 0, alike=alike)}
        for way, policy in (
            ("load-aware", LoadAware),
            ("without chance", AtOnce),
            ("without chance, selfish", Selfish),
            ("bandwidth-only", BandwidthOnly),
        ):
            ways[way] = simulate(plans, offered, policy, alike=alike)
        worst = max(worst, ways["load-aware"].mean_seconds / optimum.mean_seconds)
        swing = max(swing, ways["load-aware"].queue_variation / optimum.queue_variation)
        for way, outcome in ways.items():
            table.add_row(
                what, way, f"{outcome.mean_seconds * 1e3:.1f}", f"{outcome.mean_seconds / optimum.mean_seconds:.2f}",
                f"{outcome.remote_share:.0%}", f"{outcome.queue_mean:.1f}", f"{outcome.queue_variation:.2f}",
                f"{outcome.changes:.1f}",
            )  # fmt: skip
        table.add_section()
    console.print(table)
    console.print(f"load-aware is at most {worst:.2f} times the best fixed assignment; {LIMIT:.2f} wanted")
    console.print(
        f"its queue varies at most {swing:.2f} times as much as that of the best fixed one, whose devices never "
        f"change; {SWING_LIMIT:.2f} wanted"
    )
    if worst > LIMIT or swing > SWING_LIMIT:
        sys.exit(1)


if __name__ == "__main__":
    main()
