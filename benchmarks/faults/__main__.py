"""Faults in the middle of inferences, with real processes, on a shaped link and a slowed device (root).

The device computes squeezenet alone in about a tenth of a second; the server has a core of its own. No answer may be
wrong, raise an error, or come later than 1.3 times the device alone plus 50 ms (20 ms after its deadline where it has
one), whatever happens to server and link.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.daemon import BIN, conditions, export_missing
from benchmarks.faults.device import Device
from benchmarks.faults.server import Server, kept
from benchmarks.testbed import SERVER_ADDRESS, link, slow_device
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device import OffloadClient
from loadpart_device.hedging import LATE_FACTOR

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.testbed import Link, SlowDevice

MODEL = "squeezenet"
PORT = 50551
TARGET = f"{SERVER_ADDRESS}:{PORT}"
DEVICE_SHARE = 0.4
MEGABITS, THIN_MEGABITS = 64.0, 1.0
RATE = 4.0
FAULT_SECONDS = 5.0
RECOVERY_SECONDS = 2.0
HEDGED_SHARE = 0.01
STRENGTH_SECONDS = 5.0
DEADLINE = 0.4

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


class Row(NamedTuple):
    """A line of the result: what was tried, what came of it, and whether that is good enough."""

    name: str
    figures: str
    passed: bool


class Bench:
    """Server, link and device, and the rows so far."""

    def __init__(self, server: Server, made: Link, slow: SlowDevice | None, device: Device, *, quick: bool) -> None:
        self.server, self.link, self.slow, self.device, self.quick = server, made, slow, device, quick
        self.rows: list[Row] = []

    def row(self, name: str, figures: str, *, passed: bool) -> None:
        self.rows.append(Row(name, figures, passed))
        console.print(f"{'PASS' if passed else 'FAIL'}  {name}: {figures}")

    def settle(self) -> None:
        """Measures what the device takes alone, and waits until it offloads steadily."""
        self.device.measure_alone(anew=True)
        self.device.answers = []
        self.device.wait_remote(30)
        for _ in range(30):
            self.device.infer()

    def tell(self, name: str, extra: str = "", *, passed: bool = True) -> None:
        """Adds a row about the answers of a scenario."""
        self.device.measure_alone()
        answers, late = self.device.answers, self.device.late()
        wrong = [a for a in answers if not a.is_right]
        longest = max(a.seconds for a in answers)
        counts = {
            "hedged": sum(a.hedged for a in answers),
            "resumed": sum(a.resumed for a in answers),
            "local": sum(a.location == "local" for a in answers),
        }
        figures = (
            f"{len(answers)} answers, {len(wrong)} wrong or raised, {len(late)} late, longest {longest * 1e3:.0f} ms "
            f"of {self.device.bound_seconds * 1e3:.0f}; "
            + ", ".join(f"{n} {what}" for what, n in counts.items())
            + extra
        )
        self.row(name, figures, passed=passed and not wrong and not late)
        for answer in [*wrong, *late][:5]:
            console.print(f"      {answer.seconds * 1e3:.0f} ms, {answer.location}: {answer.reason}")


def alone(bench: Bench) -> None:
    """The device without a server, at the same rate: what its own processor does to the longest answers."""
    device = bench.device
    device.client.policy = "local"
    device.running(10.0 if bench.quick else 60.0, RATE, [])
    device.client.policy = "load-aware"
    seconds = sorted(answer.seconds for answer in device.answers)
    median = seconds[len(seconds) // 2]
    slow = sum(each > LATE_FACTOR * median for each in seconds) / len(seconds)
    figures = (
        f"{len(seconds)} answers, median {median * 1e3:.0f} ms, longest {seconds[-1] * 1e3:.0f}, {slow:.1%} beyond "
        f"{LATE_FACTOR:g} times the median, {len(device.late())} beyond the bound"
    )
    bench.row("the floor: the device alone", figures, passed=True)


def steady(bench: Bench) -> None:
    """Nothing happens: what hedging costs."""
    device = bench.device
    bench.settle()
    wasted = device.client._hedging.wasted_seconds
    seconds = 20.0 if bench.quick else 100.0
    device.running(seconds, RATE, [])
    share = (device.client._hedging.wasted_seconds - wasted) / seconds
    hedged = sum(a.hedged for a in device.answers) / len(device.answers)
    passed = hedged <= HEDGED_SHARE and share <= HEDGED_SHARE
    bench.tell("steady", f"; {hedged:.1%} hedged, {share:.2%} of the time wasted", passed=passed)


def killed(bench: Bench) -> None:
    """The daemon is killed at random moments and started again."""
    kills, inferences = (4, 200) if bench.quick else (20, 1000)
    rng, device, server = random.Random(0), bench.device, bench.server
    bench.settle()
    device.answers = []
    done = threading.Event()
    happened = 0

    def kill_again_and_again() -> None:
        nonlocal happened
        for _ in range(kills):
            if done.wait(rng.uniform(1.0, 4.0)):
                return
            server.kill()
            happened += 1
            server.start()

    killing = threading.Thread(target=kill_again_and_again)
    killing.start()
    while len(device.answers) < inferences or killing.is_alive():
        device.infer(DEADLINE if len(device.answers) % 2 else None)
    done.set()
    killing.join()
    bench.tell(f"daemon killed {happened} times", f"; half of them with a deadline of {DEADLINE:g} s")


def during(bench: Bench, name: str, begin: Callable[[], object], end: Callable[[], object]) -> None:
    """Something begins in the middle of a run, and ends again."""
    bench.settle()
    before, after = 4.0, 6.0
    device = bench.device
    _, ended = device.running(before + FAULT_SECONDS + after, RATE, [(before, begin), (before + FAULT_SECONDS, end)])
    again = device.remote_again(ended)
    told = "never" if again is None else f"{again:.2f} s after"
    bench.tell(name, f"; remote again {told}", passed=again is not None and again <= RECOVERY_SECONDS)


def daemon_stopped(bench: Bench) -> None:
    during(bench, f"daemon stopped for {FAULT_SECONDS:g} s", bench.server.suspend, bench.server.resume)


def link_cut(bench: Bench) -> None:
    during(bench, f"link cut for {FAULT_SECONDS:g} s", bench.link.cut, lambda: bench.link.shape(MEGABITS))


def link_thinned(bench: Bench) -> None:
    name = f"link from {MEGABITS:g} to {THIN_MEGABITS:g} Mbit/s for {FAULT_SECONDS:g} s"
    during(bench, name, lambda: bench.link.shape(THIN_MEGABITS), lambda: bench.link.shape(MEGABITS))


def worker_hung(bench: Bench) -> None:
    """The worker is stopped and never goes on: the daemon has to find out."""
    bench.settle()
    device, server = bench.device, bench.server
    restarts = server.metric("loadpart_edge_worker_restarts_total")
    found: list[float | None] = []

    def hang() -> None:
        server.suspend_worker()
        took = server.wait_for("loadpart_edge_worker_restarts_total", restarts + 1, math.inf, 30)
        full = server.wait_for("loadpart_edge_tails_to_build", 0, 0, 60)
        found.extend((took, full))

    (back,) = device.running(30.0, RATE, [(4.0, hang)])
    again = device.remote_again(back - 0.5)
    took, full = found
    told = f"; found after {took:.1f} s, all tails built {full:.1f} s later" if took and full else "; never found"
    told += "; remote again never" if again is None else f"; remote again {max(again - 0.5, 0.0):.2f} s after"
    passed = took is not None and full is not None and again is not None and again - 0.5 <= RECOVERY_SECONDS
    bench.tell("worker stopped for good", told, passed=passed)


def many_devices(bench: Bench) -> None:
    """Four devices infer while the worker is killed, and while it hangs."""
    server = bench.server
    clients = [
        OffloadClient(Endpoint(TARGET), MODEL, threads=1, cache=bench.device.cache, policy="offload") for _ in range(4)
    ]
    devices = [Device(client, bench.device.image, bench.device.cache) for client in clients]
    try:
        for name, fault in (("killed", server.kill_worker), ("hung", server.suspend_worker)):
            for device in devices:
                device.wait_remote(30)
                device.answers = []
            threads = [threading.Thread(target=device.run, args=(12.0, RATE)) for device in devices]
            for thread in threads:
                thread.start()
            time.sleep(2)
            restarts = server.metric("loadpart_edge_worker_restarts_total")
            fault()
            began = time.monotonic()
            server.wait_for("loadpart_edge_worker_restarts_total", restarts + 1, math.inf, 30)
            server.wait_for("loadpart_edge_workers", 1, 1, 30)
            there = time.monotonic() - began
            built = server.wait_for("loadpart_edge_tails_to_build", 0, 0, 60)
            for thread in threads:
                thread.join()
            answers = [answer for device in devices for answer in device.answers]
            bad = [answer for answer in answers if not answer.is_right]
            bench.row(
                f"worker {name} while four devices infer",
                f"{len(answers)} answers, {len(bad)} wrong or raised; a new one after {there:.1f} s, "
                f"its tails after {built or float('nan'):.1f} s more",
                passed=not bad and there <= STRENGTH_SECONDS and built is not None,
            )
    finally:
        for client in clients:
            client.close()


def terminated(bench: Bench) -> None:
    """SIGTERM while the device infers, and a new start."""
    bench.settle()
    device, server = bench.device, bench.server
    codes: list[int] = []
    seconds: list[float] = []

    def restart() -> None:
        started = time.monotonic()
        codes.append(server.stop())
        seconds.append(time.monotonic() - started)
        server.start()

    device.running(25.0, 10.0, [(2.0, restart)])
    bench.tell("SIGTERM under load", f"; exit {codes[0]} after {seconds[0]:.2f} s", passed=codes[0] == 0)


def interrupted_starts(bench: Bench) -> None:
    """SIGTERM and SIGINT at random moments of a start: it ends soon, and leaves nothing behind."""
    rng, longest, left = random.Random(1), 0.0, 0
    tries = 8 if bench.quick else 30
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TMPDIR": folder}
        for number in range(tries):
            process = subprocess.Popen(
                [str(BIN / "loadpart-edge"), "serve", "--listen", "127.0.0.1:0", "--models", MODEL],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip
            if bench.slow is not None:
                bench.slow.release(process.pid)
            time.sleep(rng.uniform(0.0, 6.0))
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT if number % 2 else signal.SIGTERM)
            started = time.monotonic()
            _, errors = process.communicate(timeout=60)
            longest = max(longest, time.monotonic() - started)
            left += len(psutil.wait_procs(children, timeout=1)[1]) + ("Traceback" in errors)
        left += len(list(Path(folder).iterdir()))
    bench.row(
        f"{tries} starts interrupted at random",
        f"the longest took {longest:.2f} s to end; {left} processes, folders or tracebacks left",
        passed=longest <= 2.0 and left == 0,
    )


SCENARIOS = {
    each.__name__: each
    for each in (
        alone, steady, daemon_stopped, worker_hung, link_cut, link_thinned, killed, many_devices, terminated,
        interrupted_starts,
    )
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, three minutes instead of ten")
    parser.add_argument("--only", default="", help=f"scenarios, by commas: {', '.join(SCENARIOS)}")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(SCENARIOS)
    export_missing()
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    cores = sorted(os.sched_getaffinity(0))
    console.print(conditions())
    with link() as made, tempfile.TemporaryDirectory() as cache:
        made.shape(MEGABITS)
        made.enter_device()
        wrapper = made.command()
        arguments = ["--models", MODEL, "--threads", "1", "--workers", "1"]
        with kept(made, SERVER_ADDRESS, PORT, arguments, wrapper, cores[-1]) as (server, shaped):
            os.sched_setaffinity(0, {cores[0]})
            server.start()
            with (
                slow_device(DEVICE_SHARE) as slow,
                OffloadClient(Endpoint(TARGET), MODEL, threads=1, cache=cache) as client,
            ):
                client.wait_ready()
                device = Device(client, image, cache)
                bench = Bench(server, shaped, slow, device, quick=options.quick)
                console.print(f"{MODEL}, the device alone: {device.alone_seconds * 1e3:.0f} ms")
                for name in chosen:
                    SCENARIOS[name](bench)
    table = Table("", "scenario", "figures", box=None)
    for row in bench.rows:
        table.add_row("PASS" if row.passed else "FAIL", row.name, row.figures)
    console.print(table)
    if not all(row.passed for row in bench.rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
