"""Simulates a thousand devices on one server or four, with the product's own decisions, load figures and policies.

Nothing is sent or computed: time is simulated. Each device infers repeatedly, with random pauses. If all offloaded,
they would ask for 70 to 400 % of what the servers can answer. The devices are either alike or differ in speed and
links, and the four servers differ in speed. For each policy the benchmark prints the mean latency, its ratio to that of
the best fixed assignment, and how much the lengths of the queues vary. In a fixed assignment every device always uses
the same server and plan; several assignments are tried, more and less cautious of queues. `--quick` leaves out what is
there for comparison only.
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
from loadpart_common.planning.plan import Point, points
from loadpart_common.planning.plans import Plans, Weights
from loadpart_common.planning.winners import winning_plans
from loadpart_common.store.model_store import ModelStore
from loadpart_device.deciding.policies import BandwidthOnly, LoadAware
from loadpart_device.deciding.state import Chosen, EdgeState, World
from loadpart_device.deciding.weighing import weigh
from loadpart_device.edges.link import LinkReading
from loadpart_device.edges.load import LoadFollower, ServerLoad
from loadpart_edge.scheduling.backlog import Backlog
from loadpart_edge.scheduling.devices import ActiveDevices
from loadpart_edge.scheduling.job import Owner
from loadpart_edge.scheduling.status import is_large_change, least_gap_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEVICES = 1000
SECONDS, WARM_UP_SECONDS = 180.0, 30.0
PERIOD_SECONDS = 0.5
NETWORK = "squeezenet"
OFFERED = (0.7, 1.5, 4.0)
"""Load if all devices offload every inference, as a share of what the server can answer."""
ANSWER_BYTES = 4000
NOISE = 0.05
SPEEDS = ((1.0,), (2.0, 1.0, 0.7, 0.3))
"""How quick the servers are: one of them alone, and four."""
CAUTIONS = (0.3, 0.6, 1.0, 1.5, 2.5)
_ROUNDS = 6
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

    def __init__(self, simulation: Simulation, name: str, seed: int) -> None:
        self.simulation, self.name, self.rng = simulation, name, random.Random(seed)
        self.watchers: list[LoadFollower] = []
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
            wait = self.told_at + least_gap_seconds(len(self.watchers)) - self.simulation.now
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
        for watcher in self.watchers:
            watcher.status_received(status)

    def period(self) -> None:
        self.publish()
        self.simulation.at(PERIOD_SECONDS, self.period)

    def sample(self) -> None:
        if self.simulation.now > WARM_UP_SECONDS:
            self.lengths.append(len(self.queue))
        self.simulation.at(0.02, self.sample)


@dataclass
class Site:
    """A server as one device sees it."""

    server: Server
    plans: Plans
    link: LinkReading
    load: LoadFollower

    @property
    def name(self) -> str:
        return self.server.name


@dataclass
class Device:
    """A device that infers, pauses for a random time, and infers again."""

    name: str
    simulation: Simulation
    sites: list[Site]
    slow_down: float
    pause: float
    rng: random.Random
    policy: LoadAware | None  # None: the device always uses the plan `fixed`
    fixed: tuple[str, Point] | None = None
    latencies: list[float] = field(default_factory=list)
    remote: int = 0
    changes: int = 0
    last: Chosen | None = None

    def __post_init__(self) -> None:
        self.by_name = {site.name: site for site in self.sites}
        self.simulation.at(self.rng.uniform(0, self.pause), self.infer)

    def infer(self) -> None:
        started = self.simulation.now
        name, point = self.fixed or self.choose()
        chosen = Chosen(name, point.key)
        self.changes += self.last is not None and chosen != self.last and started > WARM_UP_SECONDS
        self.last = chosen
        head = point.device_seconds * self.slow_down * self.rng.lognormvariate(0, NOISE)
        if point.key.is_local:
            self.simulation.at(head, lambda: self.end(started))
            return
        site = self.by_name[name]
        up = point.uplink_bytes * site.link.seconds_per_byte * self.rng.lognormvariate(0, NOISE)
        back = site.link.round_trip_seconds / 2

        def done(waited: float, seconds: float) -> None:
            status = site.server.status()

            def answered() -> None:
                site.load.status_received(status)
                site.load.reply_received(waited, seconds)
                self.end(started)

            self.simulation.at(back, answered)

        arrives = head + up + back
        self.remote += started > WARM_UP_SECONDS
        self.simulation.at(
            arrives, lambda: site.server.take(Job(point.server_seconds, self.simulation.now, done), self.name)
        )

    def choose(self) -> tuple[str, Point]:
        assert self.policy is not None
        states = [EdgeState(site.name, site.plans, site.link, site.load.now(), None) for site in self.sites]
        local = self.sites[0].plans.points[-1]
        world = World(tuple(states), self.slow_down, local.key, ANSWER_BYTES)
        chosen = self.policy.choose(world, 1).chosen
        if chosen.plan.is_local:
            return "", local
        plans = self.by_name[chosen.edge].plans
        position = plans.position(chosen.plan)
        assert position is not None
        return chosen.edge, plans.points[position]

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

    def _keeps_by_chance(self, *_: object) -> bool:
        return False


class Selfish(AtOnce):
    """As `AtOnce`, and each device counts only its own latency, not the waiting that it causes for others."""

    @staticmethod
    def weights(
        link: LinkReading, load: ServerLoad, device_slow_down: float, reply_bytes: int, batch: int = 1
    ) -> Weights:
        """See `weigh`."""
        return weigh(link, load._replace(devices=1), device_slow_down, reply_bytes, batch)


@dataclass(frozen=True)
class Fleet:
    """Devices and servers, before anything happens.

    Attributes:
        plans: The plans of each server.
        offered: Load if all devices offload every inference, as a share of what the servers can answer.
        pause: Mean pause of a device between two inferences, in seconds.
        slow_downs: Of each device.
        links: Of each device, those to each server.
    """

    plans: tuple[Plans, ...]
    offered: float
    pause: float
    slow_downs: tuple[float, ...]
    links: tuple[tuple[LinkReading, ...], ...]

    @classmethod
    def draw(cls, plans: Plans, offered: float, speeds: Sequence[float], *, alike: bool, seed: int = 0) -> Fleet:
        """Draws a fleet.

        Args:
            plans: The plans of the network that all devices run, with a server of speed 1.
            offered: See `Fleet`.
            speeds: How quick each server is.
            alike: Whether all devices have the same speed and links.
            seed: Seed of the devices.
        """
        rng = random.Random(seed)

        def draw() -> float:
            return 0.5 if alike else rng.random()

        slow_downs, links = [], []
        for _ in range(DEVICES):
            links.append(tuple([LinkReading(0.004, 8e-6 / (4 * 16 ** draw())) for _ in speeds]))  # 4 to 64 Mbit/s
            slow_downs.append(4 * 4 ** draw())  # 4 to 16 times slower than a server of speed 1
        by_server = tuple([Plans([_on(point, speed) for point in plans.points]) for speed in speeds])
        pause = DEVICES * plans.points[0].server_seconds / (offered * sum(speeds))
        return cls(by_server, offered, pause, tuple(slow_downs), tuple(links))

    def assign(self, caution: float) -> list[tuple[str, Point]]:
        """An assignment of every device to a server and a plan, or to itself, for good.

        Each device in turn takes what costs all of them the least: its own latency, and the waiting of the others that
        it makes longer, after the formula for a queue with Poisson arrivals and constant service times. Several rounds
        of this reach an assignment from which no single device can depart with a gain for all.

        Args:
            caution: Factor on what the formula says of waiting.
        """
        loads = [0.0] * len(self.plans)
        taken: list[tuple[int, Point] | None] = [None] * DEVICES
        for _ in range(_ROUNDS):
            for number, slow_down in enumerate(self.slow_downs):
                if (before := taken[number]) is not None:
                    loads[before[0]] -= before[1].server_seconds / self.pause
                least, best = self.plans[0].points[-1].device_seconds * slow_down, None
                for place, (plans, link) in enumerate(zip(self.plans, self.links[number], strict=True)):
                    costs = plans.costs(Weights(slow_down, link.seconds_per_byte, 1.0, link.round_trip_seconds))
                    for point, cost in zip(plans.points[:-1], costs, strict=False):
                        load = loads[place] + point.server_seconds / self.pause
                        if load >= 1:
                            continue
                        waiting = point.server_seconds * load / (2 * (1 - load)) * (1 + 1 / (1 - load))
                        if cost + caution * waiting < least:
                            least, best = cost + caution * waiting, (place, point)
                taken[number] = best
                if best is not None:
                    loads[best[0]] += best[1].server_seconds / self.pause
        local = self.plans[0].points[-1]
        return [("", local) if each is None else (_name(each[0]), each[1]) for each in taken]

    def simulate(self, policy: type[LoadAware] | list[tuple[str, Point]], seed: int = 0) -> Outcome:
        """Simulates the fleet.

        Args:
            policy: The policy of all devices, or an assignment.
            seed: Seed of pauses and noise.
        """
        simulation = Simulation()
        servers = [Server(simulation, _name(place), seed + place) for place in range(len(self.plans))]
        devices = []
        for number, (slow_down, links) in enumerate(zip(self.slow_downs, self.links, strict=True)):
            rng = random.Random(seed * DEVICES + number)
            sites = [
                Site(server, plans, link, LoadFollower(lambda: simulation.now))
                for server, plans, link in zip(servers, self.plans, links, strict=True)
            ]
            for site in sites:
                site.server.watchers.append(site.load)
            fixed = policy[number] if isinstance(policy, list) else None
            chosen = None if isinstance(policy, list) else policy(rng, lambda: simulation.now)
            devices.append(Device(str(number), simulation, sites, slow_down, self.pause, rng, chosen, fixed))
        simulation.run(SECONDS)
        latencies = [latency for device in devices for latency in device.latencies]
        mean = sum(statistics.fmean(server.lengths) for server in servers)
        deviation = sum(statistics.pstdev(server.lengths) for server in servers)
        return Outcome(
            statistics.fmean(latencies),
            sum(device.remote for device in devices) / len(latencies),
            mean,
            deviation / mean if mean else 0.0,
            100 * sum(device.changes for device in devices) / len(latencies),
        )


def _on(point: Point, speed: float) -> Point:
    """A plan's point on a server that is so many times quicker."""
    return Point(point.key, point.device_seconds, point.uplink_bytes, point.server_seconds / speed)


def _name(place: int) -> str:
    return f"server-{place}"


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    export_missing()
    graph = ModelStore(Path(os.environ["LOADPART_EDGE_STORE"])).open(NETWORK).graph
    curves = Curves(graph, shipped_model())
    plans = Plans(winning_plans(points(graph, curves.head_seconds({}), curves.tail_seconds({}))))
    table = Table(
        "servers", "devices, offered", "way", "mean ms", "of best fixed", "remote", "queues", "their variation",
        "changes in 100", title=f"{DEVICES} devices, {NETWORK}, {SECONDS - WARM_UP_SECONDS:.0f} s simulated",
        header_style="bold",
    )  # fmt: skip
    worst, swing = 0.0, 0.0
    for speeds, alike, offered in itertools.product(SPEEDS, (False,) if quick else (False, True), OFFERED):
        fleet = Fleet.draw(plans, offered, speeds, alike=alike)
        where, what = " + ".join(f"{speed:g}" for speed in speeds), f"{'alike' if alike else 'various'}, {offered:.0%}"
        fixed = [
            fleet.simulate(fleet.assign(caution))
            for caution in track(CAUTIONS, description=f"{where}: {what}", console=console, transient=True)
        ]
        optimum = min(fixed, key=lambda outcome: outcome.mean_seconds)
        ways = {f"best fixed: {optimum.remote_share:.0%} offload": optimum}
        ways["all local"] = fleet.simulate([("", plans.points[-1])] * DEVICES)
        policies = [("load-aware", LoadAware), ("without chance", AtOnce), ("without chance, selfish", Selfish)]
        for way, policy in [*policies, ("bandwidth-only", BandwidthOnly)][: 1 if quick else None]:
            ways[way] = fleet.simulate(policy)
        worst = max(worst, ways["load-aware"].mean_seconds / optimum.mean_seconds)
        swing = max(swing, ways["load-aware"].queue_variation / optimum.queue_variation)
        for way, outcome in ways.items():
            table.add_row(
                where, what, way, f"{outcome.mean_seconds * 1e3:.1f}",
                f"{outcome.mean_seconds / optimum.mean_seconds:.2f}", f"{outcome.remote_share:.0%}",
                f"{outcome.queue_mean:.1f}", f"{outcome.queue_variation:.2f}", f"{outcome.changes:.1f}",
            )  # fmt: skip
        table.add_section()
    console.print(table)
    console.print(f"load-aware is at most {worst:.2f} times the best fixed assignment; {LIMIT:.2f} wanted")
    console.print(
        f"its queues vary at most {swing:.2f} times as much as those of the best fixed one, whose devices never "
        f"change; {SWING_LIMIT:.2f} wanted"
    )
    if worst > LIMIT or swing > SWING_LIMIT:
        sys.exit(1)


if __name__ == "__main__":
    main()
