"""One slow device and three servers behind links of 8, 32 and 64 Mbit/s whose loads and rates change (root).

Side by side, one inference of each in turn: the load-aware choice over all servers, a random server, the one with the
quickest link, and all in turn (these three with the best plan for that server), and every single server with every
plan that can win. In each phase, the mean latency of the load-aware choice is compared with that of the best server and
plan, from the second inference on after the change could be seen. Then the server in use is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.daemon import conditions, daemon, export_missing
from benchmarks.photographs import photographs
from benchmarks.testbed import SlowDevice, links, slow_device
from loadpart_common.planning.plan import PlanKey
from loadpart_device import OffloadClient
from loadpart_device.hedging import LATE_FACTOR, LATE_SECONDS
from loadpart_device.images import load_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.daemon import Daemon
    from benchmarks.testbed import Link
    from loadpart_common.tensors import Array

MODEL = "squeezenet"
MEGABITS = (8.0, 32.0, 64.0)
DEVICE_SHARE = 0.25
BUSY = 0.08
"""Share of its core that a server has when it is busy with something else."""

SEEN_SECONDS, LINK_SEEN_SECONDS = 2.0, 20.0
"""Until a change of a load can be seen, by a status or a canary; and of a link of 8 Mbit/s that is not in use."""

SECONDS, QUICK_SECONDS = 25.0, 12.0
HOPELESS, LEAST_ROUNDS = 2.0, 8
KILL_RATE, KILL_SECONDS = 10.0, 8.0
LIMIT = 1.05
RULES = ("load-aware", "random", "nearest", "in turn")

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


class Taken(NamedTuple):
    """With which server and plan an inference ran, and how long it took."""

    what: str
    seconds: float


class Phase(NamedTuple):
    """Rates of the links, and the share of its core that each server has."""

    name: str
    megabits: Sequence[float] = MEGABITS
    shares: Sequence[float] = (1.0, 1.0, 1.0)
    seen_seconds: float = SEEN_SECONDS


PHASES = (
    Phase("all idle", seen_seconds=LINK_SEEN_SECONDS),
    Phase("the nearest is busy", shares=(1.0, 1.0, BUSY)),
    Phase("the two nearest are busy", shares=(1.0, BUSY, BUSY)),
    Phase("all idle again"),
    Phase("links change places", megabits=(64.0, 32.0, 8.0), seen_seconds=LINK_SEEN_SECONDS),
    Phase("all links are thin", megabits=(1.0, 1.0, 1.0), seen_seconds=LINK_SEEN_SECONDS),
)


class Servers:
    """Three servers, each with a link and a quota of its own."""

    def __init__(self, running: list[Daemon], wires: list[Link], groups: list[SlowDevice]) -> None:
        self.running, self.wires, self.groups = running, wires, groups

    @property
    def targets(self) -> list[str]:
        return [each.target for each in self.running]

    def enter(self, phase: Phase) -> None:
        for wire, group, megabits, share in zip(self.wires, self.groups, phase.megabits, phase.shares, strict=True):
            wire.shape(megabits)
            group.set_share(share)


@contextlib.contextmanager
def servers(core: int) -> Iterator[Servers]:
    """Starts the servers in namespaces of their own; this process becomes the device."""
    with contextlib.ExitStack() as stack:
        wires = stack.enter_context(links(len(MEGABITS)))
        arguments = (
            "--store",
            os.environ["LOADPART_EDGE_STORE"],
            "--models",
            MODEL,
            "--workers",
            "1",
            "--threads",
            "1",
        )
        running = [
            stack.enter_context(daemon(*arguments, cores={core}, address=wire.address, wrapper=wire.command()))
            for wire in wires
        ]
        groups = []
        for each in running:
            process = psutil.Process(each.process.pid)
            group = SlowDevice(1.0, [process.pid, *(child.pid for child in process.children(recursive=True))])
            stack.callback(group.close)
            groups.append(group)
        wires[0].enter_device()
        yield Servers(running, wires, groups)


class Arms:
    """What is compared: the rules, and every server with every plan that can win, as functions that infer once."""

    def __init__(self, targets: Sequence[str], make: Callable[..., OffloadClient], image: Array) -> None:
        self.image = image
        self.fleet = make(targets)
        self.single = {target: make(target) for target in targets}
        self.fixed = {target: make(target, policy="local", hedge=False) for target in targets}
        self._turn = itertools.cycle(targets)
        self._random = random.Random(0)
        for client in self.clients:
            if not client.wait_ready():
                raise RuntimeError("a server could not be reached")
        self.alone = statistics.median(self.fixed[targets[0]].infer(image).timings.total for _ in range(9))
        self.rules = dict(zip(RULES, (self.aware, self.by_chance, self.nearest, self.in_turn), strict=True))
        plans = sorted({plan for client in self.single.values() for plan in client.winning_plans})
        self.plans: dict[str, Callable[[], Taken]] = {"local": self._fixed(targets[0], None)}
        self.plans |= {
            f"{target}, {plan}": self._fixed(target, plan) for target in targets for plan in plans if not plan.is_local
        }

    @property
    def clients(self) -> list[OffloadClient]:
        return [self.fleet, *self.single.values(), *self.fixed.values()]

    def aware(self) -> Taken:
        return self._taken(self.fleet)

    def by_chance(self) -> Taken:
        return self._taken(self._random.choice(list(self.single.values())))

    def nearest(self) -> Taken:
        """As a resolver by latency would have it: the server with the quickest link, whatever its load."""
        rates = {target: client.link for target, client in self.single.items()}
        target = max(rates, key=lambda name: link.megabits if (link := rates[name]) else 0.0)
        return self._taken(self.single[target])

    def in_turn(self) -> Taken:
        return self._taken(self.single[next(self._turn)])

    def _fixed(self, target: str, plan: PlanKey | None) -> Callable[[], Taken]:
        def infer() -> Taken:
            self.fixed[target].policy = "local" if plan is None else f"{plan.cut}:{plan.codec}"
            return self._taken(self.fixed[target])

        return infer

    def _taken(self, client: OffloadClient) -> Taken:
        result = client.infer(self.image)
        plan = PlanKey(result.plan.cut, result.plan.codec)
        what = "local" if result.plan.location == "local" else f"{result.plan.server}, {plan}"
        return Taken("finished for a server" if result.resumed else what, result.timings.total)


class Row(NamedTuple):
    """What came of a phase: seconds of each rule, and of the best server and plan."""

    phase: Phase
    seconds: dict[str, float]
    best: str
    best_seconds: float
    rounds: int


def measure(made: Servers, arms: Arms, phase: Phase, seconds: float) -> Row:
    """Runs all arms in turn, in an order drawn anew for each round, from when the change could be seen on.

    What an inference takes depends on its server and plan and on the world, not on who chose them. So what a rule takes
    is the mean, over its choices, of what all inferences with that server and plan took in the phase.
    """
    made.enter(phase)
    end = time.monotonic() + phase.seen_seconds
    while time.monotonic() < end:  # the device goes on inferring: what is in use is seen at once
        for rule in arms.rules.values():
            rule()
    for rule in arms.rules.values():  # the first inference that could know; the second one counts
        rule()
    first = {name: arm().seconds for name, arm in arms.plans.items()}
    every = arms.rules | {
        name: arm for name, arm in arms.plans.items() if first[name] < HOPELESS * min(first.values())
    }  # fmt: skip
    chosen: dict[str, list[str]] = {name: [] for name in every}
    taken: dict[str, list[float]] = {}
    rng, end = random.Random(0), time.monotonic() + seconds
    rounds = 0
    while time.monotonic() < end or rounds < LEAST_ROUNDS:
        rounds += 1
        for name in rng.sample(list(every), len(every)):
            took = every[name]()
            chosen[name].append(took.what)
            taken.setdefault(took.what, []).append(took.seconds)
    means = {what: statistics.fmean(times) for what, times in taken.items()}
    best = min(
        (what for what in means if what in arms.plans and len(taken[what]) >= LEAST_ROUNDS), key=means.__getitem__
    )
    rules = {rule: statistics.fmean(means[what] for what in chosen[rule]) for rule in RULES}
    return Row(phase, rules, best, means[best], rounds)


def kill(made: Servers, arms: Arms) -> tuple[bool, str]:
    """Kills the server in use while the device infers; gives whether all was well, and what came of it."""
    made.enter(PHASES[0])
    arms.fleet.network_changed()  # on thin links, as they were, probes are rare
    arms.fleet.wait_ready()
    client, image = arms.fleet, arms.image
    expected = arms.fixed[made.targets[0]]
    expected.policy = "local"
    right = expected.infer(image).outputs
    end = time.monotonic() + 30
    while not (used := client.infer(image).plan.server) and time.monotonic() < end:
        time.sleep(1 / KILL_RATE)
    wrong = raised = 0
    seconds: list[float] = []
    places: dict[str, int] = {}
    started = time.monotonic()
    is_killed = False
    for number in range(int(KILL_RATE * KILL_SECONDS)):
        if not is_killed and time.monotonic() > started + KILL_SECONDS / 4 and used:
            victim = made.running[made.targets.index(used)]
            parent = psutil.Process(victim.process.pid)
            for process in (*parent.children(recursive=True), parent):
                process.kill()
            is_killed = True
        begun = time.perf_counter()
        try:
            result = client.infer(image)
            wrong += not all(map(np.array_equal, result.outputs, right))
            where = result.plan.server or "device"
            places[where] = places.get(where, 0) + 1
        except Exception as error:  # whatever it is, it is a failure
            console.print(f"raised: {error!r}")
            raised += 1
        seconds.append(time.perf_counter() - begun)
        time.sleep(max(started + (number + 1) / KILL_RATE - time.monotonic(), 0))
    bound = LATE_FACTOR * arms.alone + LATE_SECONDS
    passed = is_killed and not wrong and not raised and max(seconds) <= bound
    return passed, (
        f"{used} killed while {len(seconds)} inferences ran: {wrong} wrong, {raised} raised, longest "
        f"{max(seconds) * 1e3:.0f} ms ({max(seconds) / arms.alone:.2f} times local; at most {bound * 1e3:.0f} wanted); "
        f"answered by {', '.join(f'{name} {count}' for name, count in places.items())}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half the time in each phase")
    seconds = QUICK_SECONDS if parser.parse_args().quick else SECONDS
    export_missing()
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(servers(cores[-1]))
        os.sched_setaffinity(0, {cores[0]})
        stack.enter_context(slow_device(DEVICE_SHARE))
        cache = stack.enter_context(tempfile.TemporaryDirectory())

        def make(target: str | Sequence[str], policy: str = "load-aware", *, hedge: bool = True) -> OffloadClient:
            client = OffloadClient(target, MODEL, policy=policy, hedge=hedge, threads=1, cache=cache)
            return stack.enter_context(client)

        made.enter(PHASES[0])
        probe = make(made.targets[0], policy="local")
        image = load_images([photographs()[0]], probe.graph.inputs[0])
        arms = Arms(made.targets, make, image)
        phases = track(PHASES, description="phases", console=console, transient=True)
        rows = [measure(made, arms, phase, seconds) for phase in phases]
        passed, killed = kill(made, arms)
    table = Table("phase", *(f"{rule}, ms" for rule in RULES), "best", "ms", "load-aware", "rounds", box=None)
    for row in rows:
        ratio = row.seconds["load-aware"] / row.best_seconds
        means = [f"{row.seconds[rule] * 1e3:.1f}" for rule in RULES]
        table.add_row(
            row.phase.name, *means, row.best, f"{row.best_seconds * 1e3:.1f}", f"{ratio:.2f}", str(row.rounds)
        )
    console.print(conditions())
    console.print(f"{MODEL}; the device takes {arms.alone * 1e3:.0f} ms alone; links of 8, 32 and 64 Mbit/s at first")
    console.print(table)
    worst = max(row.seconds["load-aware"] / row.best_seconds for row in rows)
    for rule in RULES[1:]:
        mean = statistics.fmean(row.seconds[rule] / row.seconds["load-aware"] for row in rows)
        console.print(f"{rule}: {mean:.2f} times the latency of load-aware, mean over the phases")
    console.print(f"load-aware is at most {worst:.2f} times the best server and plan; {LIMIT:.2f} wanted")
    console.print(f"{'PASS' if passed else 'FAIL'}  {killed}")
    if worst > LIMIT or not passed:
        sys.exit(1)


if __name__ == "__main__":
    main()
