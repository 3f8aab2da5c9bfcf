"""Runs the policies and every fixed plan that can win side by side on a slow device."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.comparison.grid import IDLE, NETWORKS, Load
from benchmarks.comparison.records import Measured, Sample
from benchmarks.photographs import photographs
from benchmarks.testbed import slow_device
from loadpart_common.latency.measurements import Measurements
from loadpart_common.machine import machine_name
from loadpart_common.planning.plan import DEFAULT_CODEC, PlanKey
from loadpart_common.wire.limits import BACKLOG_WINDOW_SECONDS
from loadpart_device import OffloadClient
from loadpart_device.deciding.policies import ADAPTIVE
from loadpart_device.images import load_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from benchmarks.comparison.grid import Condition
    from benchmarks.testbed import Link
    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.latency.model import LatencyModel
    from loadpart_common.tensors import Array
    from loadpart_device.edges.link import LinkReading
    from loadpart_device.edges.load import ServerLoad
    from loadpart_device.result import Result

DEFAULT_POLICY = "load-aware"
POLICIES: dict[str, dict[str, Any]] = {policy: {"policy": policy} for policy in ADAPTIVE}
"""The arms that decide, and what their clients are made with."""

SHARES = {4: 0.25, 8: 0.15}
"""Share of a core that a device gets, by about how many times slower it becomes."""

OUTSIDE_NICE = -10
"""Priority of the outside process, above the server's. At equal priority it would get at most half of the core; some
conditions need 90 %."""

START_MEGABITS = 64
"""Rate of the link while a device is set up."""

LEAST_ROUNDS, MOST_ROUNDS = 5, 40
_HOPELESS = 10  # cuts this many times slower than the quickest first inference are not measured further
_SETTLE_SECONDS = 2.0
_GIVEN_UP_SECONDS = 60.0
_QUIET_SECONDS, _BUILT_SECONDS = 3.0, 0.1
_FACTOR_RUNS = 5
_DRAIN_SECONDS, _DRAINED_SECONDS = 30.0, 0.02
_FORGOTTEN_SECONDS = 2.5 * BACKLOG_WINDOW_SECONDS


class LoadSource:
    """The server's load: other devices, and processes on its core that are not the daemon."""

    def __init__(self, target: str, core: int, wrapper: Sequence[str]) -> None:
        """Starts the processes, idle.

        Args:
            target: The server.
            core: Core of the server's worker.
            wrapper: A command prefix that runs a command where it reaches the server without the shaped link.
        """
        python = [sys.executable, "-m"]
        others = [*wrapper, *python, "benchmarks.comparison.others", target, ",".join(NETWORKS)]
        outside = ["nice", "-n", str(OUTSIDE_NICE), *python, "benchmarks.comparison.outside", str(core)]
        self._others = _start(others)
        self._outside = [_start(outside) for _ in range(2)]  # two, for a load of 200 %

    def set(self, load: Load, seed: int) -> None:
        """Sets the load from now on.

        Raises:
            RuntimeError: One of the processes has failed.
        """
        others, outside = (load.level if load.source == source else 0.0 for source in ("clients", "outside"))
        _tell(self._others, f"{others} {seed}")
        for number, process in enumerate(self._outside):
            _tell(process, f"{min(max(outside - number, 0.0), 1.0)}")

    def close(self) -> None:
        """Stops the processes."""
        for process in (self._others, *self._outside):
            process.kill()
            process.communicate()


def _start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True)


def _tell(process: subprocess.Popen[str], line: str) -> None:
    if process.poll() is not None:
        raise RuntimeError(f"a process that loads the server has ended with {process.returncode}")
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


@dataclass(frozen=True, slots=True)
class Device:
    """A slow device, ready to run one network.

    Attributes:
        network: The network.
        whole: The cut that leaves everything on the device.
        factor: Time of the whole network on it, divided by that on the same core at full speed.
        clients: A client for each adaptive arm; they share no estimates of link and load.
        arms: Functions that run one inference, by the name of the adaptive arm or fixed plan.
    """

    network: str
    whole: int
    factor: float
    clients: dict[str, OffloadClient]
    arms: dict[str, Callable[[], Sample]]

    @property
    def load(self) -> ServerLoad:
        """The server's load, as the first client expects it."""
        load = next(iter(self.clients.values())).load
        assert load is not None  # it is known once the client is ready
        return load


@dataclass(frozen=True, slots=True)
class Means:
    """Means of the benchmark, and the engine of both sides.

    Attributes:
        models: Models that devices have fetched.
        latency: The calibrated latency model of this machine.
        decisions: The policies' decision logs.
        setup: The engine.
    """

    models: Path
    latency: Path
    decisions: Path
    setup: EngineSetup


@contextlib.contextmanager
def device(
    target: str,
    network: str,
    slow_down: int,
    means: Means,
    adaptive: Mapping[str, Mapping[str, Any]] = POLICIES,
    *,
    has_fixed: bool = True,
) -> Iterator[Device]:
    """Makes this process a slow device within the block.

    Each arm runs the network on the same photographs in the same order.

    Args:
        target: The server.
        network: The network.
        slow_down: About how many times slower the device becomes.
        means: Means of the benchmark.
        adaptive: For each adaptive arm, what its client is made with.
        has_fixed: Whether there is an arm for each plan that can win, too.
    """
    with contextlib.ExitStack() as stack:

        def client(latency: Path, log: Path | None = None, **options: Any) -> OffloadClient:
            made = OffloadClient(
                target,
                network,
                **options,
                engine=means.setup.engine.name,
                threads=1,
                cache=means.models,
                latency_folder=latency,
                decision_log=log,
                hedge=False,  # which would turn some inferences of every arm into others
            )
            stack.enter_context(made)
            if not made.wait_ready():
                raise RuntimeError(f"{target} could not be reached")
            return made

        fixed = client(means.latency, policy="local")
        images = [load_images([path], fixed.graph.inputs[0]) for path in photographs()]
        quick = _local_seconds(fixed, images[0])
        stack.enter_context(slow_device(SHARES[slow_down]))
        factor = _local_seconds(fixed, images[0]) / quick
        latency = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        calibrated = Measurements(means.setup, means.latency).model()
        Measurements(means.setup, latency).save_model(_slowed(calibrated, factor))
        clients = {
            arm: client(latency, means.decisions / f"{network}-{slow_down}-{arm}.jsonl", **options)
            for arm, options in adaptive.items()
        }
        whole = fixed.graph.layer_count
        plans = sorted({key for each in clients.values() for key in each.winning_plans})
        offload = PlanKey(0, DEFAULT_CODEC)
        named = {"local": PlanKey(whole), "offload": offload}
        named |= {str(plan): plan for plan in plans if plan != offload and not plan.is_local}
        if not has_fixed:
            named = {}
        arms = {name: _fixed_arm(fixed, plan, images) for name, plan in named.items()}
        arms |= {arm: _arm(each, images) for arm, each in clients.items()}
        for name in named:  # builds heads and tails before anything is measured
            arms[name]()
        _wait_until_quiet(clients.values())
        for arm, each in clients.items():  # as an application's first inferences run, before the link is known
            _local_seconds(each, images[0])
            each.policy = adaptive[arm].get("policy", DEFAULT_POLICY)
        yield Device(network, whole, factor, clients, arms)


def _wait_until_quiet(clients: Iterable[OffloadClient]) -> None:
    """Waits until clients have built all that they want: what the server learns of its tails makes them want more."""
    quiet_since = time.monotonic()
    while time.monotonic() < quiet_since + _QUIET_SECONDS:
        for client in clients:
            started = time.monotonic()
            client.wait_ready()
            if time.monotonic() > started + _BUILT_SECONDS:
                quiet_since = time.monotonic()
        time.sleep(_BUILT_SECONDS)


def _slowed(model: LatencyModel, factor: float) -> LatencyModel:
    """The latency model of a machine that is `factor` times slower.

    It is scaled rather than calibrated, because a calibration under the quota would take that many times longer.
    """
    return replace(
        model,
        machine=machine_name(),  # the shipped model is of another one
        coefficients={
            family: {feature: seconds * factor for feature, seconds in row.items()}
            for family, row in model.coefficients.items()
        },
    )


def _local_seconds(client: OffloadClient, image: Array) -> float:
    client.policy = "local"
    return statistics.median(client.infer(image).timings.total for _ in range(_FACTOR_RUNS))


def _arm(client: OffloadClient, images: Sequence[Array]) -> Callable[[], Sample]:
    following = itertools.cycle(images)

    def infer() -> Sample:
        link = client.link
        return _sample(client.infer(next(following)), link)

    return infer


def _fixed_arm(client: OffloadClient, plan: PlanKey, images: Sequence[Array]) -> Callable[[], Sample]:
    following = itertools.cycle(images)

    def infer_fixed() -> Sample:
        """Runs the plan and no other: while an overloaded server refuses it, it is asked again, and the time counts.

        A plan that has not answered by `_GIVEN_UP_SECONDS` counts with the time that has passed, which is less than
        it would take.
        """
        client.policy = "local" if plan.is_local else f"{plan.cut}:{plan.codec}"
        image, started = next(following), time.perf_counter()
        while True:
            link = client.link
            result = client.infer(image)
            passed = time.perf_counter() - started
            if (result.plan.cut, result.plan.codec) == plan or passed > _GIVEN_UP_SECONDS:
                return replace(_sample(result, link), total=passed, cut=plan.cut, codec=plan.codec)

    return infer_fixed


def _sample(result: Result, link: LinkReading | None) -> Sample:
    """What is kept of an inference, and of the link as its client knew it before."""
    timings = result.timings
    return Sample(
        timings.total, result.plan.cut, timings.network, timings.queue, timings.tail, result.plan.predicted_seconds,
        link.megabits if link else None, result.plan.codec,
    )  # fmt: skip


def settle(slow: Device, wire: Link, load: LoadSource, megabits: float, level: Load, seed: int) -> dict[str, Sample]:
    """Sets link and load, waits until the clients have measured them, and returns a first inference of each arm."""
    wire.shape(START_MEGABITS)
    load.set(IDLE, seed)
    time.sleep(0.5)
    wire.shape(megabits)
    load.set(level, seed)
    for client in slow.clients.values():  # one after the other, because they share the link
        client.network_changed()
        client.wait_ready()
    time.sleep(_SETTLE_SECONDS)
    return {arm: run_alone(infer) for arm, infer in slow.arms.items()}


def replay(slow: Device, load: LoadSource, level: Load, seed: int, lead_seconds: float) -> None:
    """Waits until the server is idle, then restarts its load; the same seed gives the same load."""
    load.set(IDLE, seed)
    end = time.perf_counter() + _DRAIN_SECONDS
    while slow.load.backlog_seconds > _DRAINED_SECONDS:
        if time.perf_counter() > end:
            raise RuntimeError(f"the server still had {slow.load.backlog_seconds:.3f} s to do after {_DRAIN_SECONDS} s")
        time.sleep(0.02)
    load.set(level, seed)
    time.sleep(lead_seconds)


def run_alone(infer: Callable[[], Sample]) -> Sample:
    """Runs an inference, then waits until the mean backlog has forgotten it; other arms must not see it as load."""
    sample = infer()
    time.sleep(min(3 * sample.tail, _FORGOTTEN_SECONDS))
    return sample


def measure(
    slow: Device, condition: Condition, wire: Link, load: LoadSource, seconds: float, on_round: Callable[[float], None]
) -> Measured:
    """Runs all arms in turn, in an order drawn anew for each round.

    Where other devices load the server, they send the same frames at the same times for each arm of a round. Otherwise
    an arm would look slow only because it happened to wait behind another device's large network.

    Args:
        slow: The device.
        condition: The condition.
        wire: The link.
        load: The server's load.
        seconds: How long to measure; rounds continue until there are `LEAST_ROUNDS` of them.
        on_round: Called after each round with the share that is done.
    """
    seed = sum(str(condition).encode())
    first = settle(slow, wire, load, condition.megabits, condition.load, seed)
    quickest = min(sample.total for sample in first.values())
    arms: dict[str, list[Sample]] = {
        arm: [] for arm in slow.arms if not arm.startswith("cut ") or first[arm].total < _HOPELESS * quickest
    }
    rng = random.Random(seed)
    slow_downs, backlogs = [], []
    has_others = condition.load.source == "clients" and condition.load.level > 0
    started = time.perf_counter()
    for number in range(1, MOST_ROUNDS + 1):
        lead = rng.uniform(_FORGOTTEN_SECONDS, 2 * _FORGOTTEN_SECONDS)  # see `run_alone`
        for arm in rng.sample(list(arms), len(arms)):
            if arm == "local":  # does not depend on the server's load
                arms[arm].append(slow.arms[arm]())
                continue
            if has_others:
                replay(slow, load, condition.load, seed * MOST_ROUNDS + number, lead)
            told = slow.load
            slow_downs.append(told.slow_down)
            backlogs.append(told.backlog_seconds)
            arms[arm].append(slow.arms[arm]() if has_others else run_alone(slow.arms[arm]))
        passed = time.perf_counter() - started
        on_round(min(max(passed / seconds, number / MOST_ROUNDS), number / LEAST_ROUNDS, 1.0))
        if number >= LEAST_ROUNDS and passed >= seconds:
            break
    return Measured(condition, slow.whole, slow.factor, statistics.median(slow_downs), statistics.mean(backlogs), arms)


@contextlib.contextmanager
def server_load(target: str, wrapper: Sequence[str]) -> Iterator[LoadSource]:
    """Makes a load for a server whose worker runs on the last core, and stops it at the end of the block."""
    made = LoadSource(target, sorted(os.sched_getaffinity(0))[-1], wrapper)
    try:
        yield made
    finally:
        made.close()
