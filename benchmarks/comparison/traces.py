"""Bandwidth and load that change while the device keeps inferring."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.comparison.grid import IDLE, Load
from benchmarks.comparison.measure import run_alone, settle
from benchmarks.comparison.records import Moment, Traced

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.comparison.measure import Device, LoadSource
    from benchmarks.testbed import Link

_BUSY = Load("clients", 2.0)
_CROWDED = Load("outside", 2.0)


@dataclass(frozen=True, slots=True)
class Trace:
    """A scenario in which bandwidth and load change over time.

    Attributes:
        name: Its name.
        about: What happens in it, in a few words.
        network: The network that the device runs.
        slow_down: About how many times slower than the server the device is.
        seconds: How long it lasts.
        world: The changes: at so many seconds, the rate of the link in Mbit/s and the load from then on.
    """

    name: str
    about: str
    network: str
    slow_down: int
    seconds: float
    world: tuple[tuple[float, float, Load], ...]

    def __str__(self) -> str:
        return f"trace “{self.name}”: {self.about}"


def steps() -> Trace:
    """Bandwidth and load change in steps, and back."""
    phases = (
        (20, 32, IDLE),
        (30, 4, IDLE),
        (30, 32, IDLE),
        (25, 32, _CROWDED),
        (20, 32, IDLE),
        (30, 32, _BUSY),
        (20, 32, IDLE),
    )
    world, at = [], 0
    for seconds, megabits, load in phases:
        world.append((at, megabits, load))
        at += seconds
    return Trace("steps", "bandwidth and load step up and down", "squeezenet", 4, at, tuple(world))


def ramps() -> Trace:
    """The bandwidth falls and rises again, and then the load rises and falls."""
    world = [(float(second), 64 * 2 ** (-6 * (1 - abs(second / 30 - 1))), IDLE) for second in range(60)]
    levels = (0.3, 0.5, 0.7, 0.9, 1.0, 2.0, 1.0, 0.9, 0.7, 0.5, 0.3, 0.0)
    world += [(60 + 5 * number, 64.0, Load("clients", level)) for number, level in enumerate(levels)]
    return Trace(
        "ramps", "the bandwidth falls and rises, then the load rises and falls", "squeezenet", 8, 120, tuple(world)
    )


def recorded() -> Trace:
    """Imitates a recording of a radio link and of a server's load, by a seeded model.

    The logarithm of the bandwidth is a first-order autoregressive process, a common model of radio links. Each load
    lasts for an exponentially distributed time; then the next one is drawn.
    """
    rng = random.Random(2022)
    world, deviation, load, until = [], 0.0, IDLE, 0.0
    for second in range(0, 120, 2):
        deviation = 0.85 * deviation + rng.gauss(0, 0.6)
        if second >= until:
            load = rng.choice((IDLE, Load("clients", 0.7), _BUSY, Load("outside", 1.0), _CROWDED))
            until = second + rng.expovariate(1 / 15)
        world.append((second, min(max(16 * math.exp(deviation), 1.0), 64.0), load))
    return Trace("recorded", "bandwidth and load as they might be recorded", "resnet18", 4, 120, tuple(world))


def full() -> list[Trace]:
    """All traces."""
    return [steps(), ramps(), recorded()]


def quick() -> list[Trace]:
    """One short trace, to see that everything works."""
    world = ((0.0, 32.0, IDLE), (10.0, 4.0, IDLE), (20.0, 32.0, _BUSY))
    return [Trace("short steps", "bandwidth, then load", "squeezenet", 4, 30, world)]


def run(trace: Trace, slow: Device, wire: Link, load: LoadSource, on_moment: Callable[[float], None]) -> Traced:
    """Runs all arms in turn while link and load change."""
    _, megabits, level = trace.world[0]
    settle(slow, wire, load, megabits, level, 0)
    moments: list[Moment] = []
    world = []
    ahead = list(trace.world)
    rng = random.Random(0)
    started = time.perf_counter()
    while time.perf_counter() - started < trace.seconds:
        for arm in rng.sample(list(slow.arms), len(slow.arms)):
            now = time.perf_counter() - started
            due = [change for change in ahead if change[0] <= now]
            if due:
                del ahead[: len(due)]
                _, megabits, level = due[-1]
                wire.shape(megabits)
                load.set(level, len(ahead))
                world.append((time.perf_counter() - started, megabits, level))
            now = time.perf_counter() - started
            moments.append(Moment(now, arm, run_alone(slow.arms[arm])))
        on_moment(min(now / trace.seconds, 1.0))
    return Traced(trace.name, trace.network, slow.whole, slow.factor, world, moments)
