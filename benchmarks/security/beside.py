"""Honest devices alone and beside each attack, in turn: what they keep of their throughput, what memory is held.

Eight honest devices, each a client of its own, ask in closed loops, from one process on the first core. The attacker is
another process on the same core with the lowest priority, since a hostile device computes elsewhere; the daemon has
both cores, and its worker the last one. Shares are medians of rounds in which alone and beside follow each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil
from rich.progress import track

from benchmarks.daemon import daemon
from benchmarks.security.attacks import ATTACKS
from benchmarks.security.honest import MODEL
from benchmarks.security.report import Report, console
from loadpart_edge.access.client import Client, Right, token_sha256
from loadpart_edge.access.clients import Clients

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HONEST = 8
LEAST_SHARE = 0.80
ROUNDS, ALONE_SECONDS, BESIDE_SECONDS = 2, 3.0, 8.0
MEMORY_BYTES = 1 << 30
BASE_BYTES = 512 << 20
"""What the main process may have besides `MEMORY_BYTES`: its code and models, the slots, buffers of connections."""

_SETTLE_SECONDS = 0.5
_UP_SECONDS, _DOWN_SECONDS = 60.0, 60.0
FOREIGN_SOURCE, OWN_SOURCE = "127.0.0.2", "127.0.0.1"


@dataclass
class Outcome:
    """What an attack did, over its rounds.

    Attributes:
        shares: Throughput beside it over throughput alone, one a round.
        least: The same of the device that kept least.
        alone: Answers in a second without it.
        slowest: Longest wait of an honest device beside it, in seconds.
        errors: Honest calls that failed.
        wrong: Honest calls with a wrong answer.
        peak: Largest resident memory of the main process, in bytes.
        busy: Cores that the main process used beside it.
        answers: What the server answered to the attacker.
        last_error: Of an honest device.
    """

    shares: list[float] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    slowest: float = 0.0
    errors: int = 0
    wrong: int = 0
    peak: int = 0
    busy: float = 0.0
    answers: dict[str, int] = field(default_factory=dict)
    last_error: str = ""


class Peak:
    """Watches the resident memory of a process on a thread."""

    def __init__(self, process: psutil.Process) -> None:
        self.bytes = 0
        self._process = process
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while True:
                self.bytes = max(self.bytes, self._process.memory_info().rss)
                time.sleep(0.05)


class Helper:
    """A process that is spoken to in lines."""

    def __init__(self, module: str, *arguments: str, core: int) -> None:
        command = [sys.executable, "-m", f"benchmarks.security.{module}", *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(self._process.pid, {core})
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[str] = self._process.stdin
        self._stdout: IO[str] = self._process.stdout

    def ask(self, line: str = "") -> str:
        """Sends a line, and gives the next one that comes."""
        self._stdin.write(line + "\n")
        self._stdin.flush()
        answer = self._stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} has ended: {self._process.wait()}")
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._stdin.close()
        self._stdout.close()


def clients_file(folder: Path, names: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """A file of clients with a token each and all rights; gives its path and the tokens by name."""
    tokens = {name: secrets.token_urlsafe(32) for name in names}
    entries = tuple(Client(name, frozenset(Right), token_sha256(token)) for name, token in tokens.items())
    path = folder / "clients.toml"
    path.write_text(Clients(entries).text())
    path.chmod(0o600)
    return path, tokens


@contextlib.contextmanager
def _helper(module: str, *arguments: str, core: int) -> Iterator[Helper]:
    helper = Helper(module, *arguments, core=core)
    try:
        yield helper
    finally:
        helper.end()


def run(report: Report, store: str, *, quick: bool, only: Sequence[str] = ()) -> None:
    """Runs every attack from another party and from the same one."""
    core = min(os.sched_getaffinity(0))
    names = [name for name in ATTACKS if not only or name in only]
    cases = [(name, is_same) for name in names for is_same in (False, True)]
    table = report.table(
        f"honest devices beside attacks: {HONEST} devices, at least {LEAST_SHARE:.0%} wanted; main process at most "
        f"memory_bytes {MEMORY_BYTES >> 20} + {BASE_BYTES >> 20} MiB",
        "attack", "party", "alone, /s", "kept", "least device", "slowest, s", "errors", "peak, MiB", "main, cores",
        "the attacker was answered",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        devices = [f"honest-{number}" for number in range(HONEST)]
        path, tokens = clients_file(Path(folder), [*devices, "stranger"])
        arguments = ("--store", store, "--models", MODEL, "--threads", "1", "--clients", str(path))
        with (
            open(Path(folder) / "log", "w+") as log,
            daemon(*arguments, "--memory-bytes", str(MEMORY_BYTES), stderr=log.fileno()) as server,
            _helper("honest", server.target, store, *(tokens[name] for name in devices), core=core) as honest,
            _helper("attacks", server.target, store, core=core) as attacker,
        ):
            main = psutil.Process(server.process.pid)
            workers = [child.pid for child in main.children()]
            idle = main.memory_info().rss
            honest.ask()
            time.sleep(3.0)
            for name, is_same in track(cases, description="attacks", console=console, transient=True):
                outcome = Outcome()
                token = tokens[devices[0]] if is_same else tokens["stranger"]
                source = OWN_SOURCE if is_same else FOREIGN_SOURCE
                for _ in range(1 if quick else ROUNDS):
                    _round(outcome, main, honest, attacker, json.dumps([name, token, source]))
                share, least = statistics.median(outcome.shares), statistics.median(outcome.least)
                is_good = share >= LEAST_SHARE and not outcome.errors and not outcome.wrong
                is_good = is_good and outcome.peak <= MEMORY_BYTES + BASE_BYTES
                report.add(
                    table, is_good, name, "same" if is_same else "another",
                    f"{statistics.median(outcome.alone):.1f}", f"{share:.0%}", f"{least:.0%}",
                    f"{outcome.slowest:.2f}", f"{outcome.errors + outcome.wrong} {outcome.last_error[:60]}".strip(),
                    f"{outcome.peak >> 20}", f"{outcome.busy:.2f}",
                    ", ".join(f"{status} {number}" for status, number in outcome.answers.items()),
                )  # fmt: skip
            same = workers == [child.pid for child in main.children()]
            log.seek(0)
            tracebacks = log.read().split("Traceback (most recent call last)")[1:]
        console.print(table)
        report_ends(report, same, tracebacks, idle)


def report_ends(report: Report, same: bool, tracebacks: Sequence[str], idle: int) -> None:
    table = report.table("after all attacks", "what", "figure")
    report.add(table, same, "workers", "lived" if same else "DIED")
    report.add(table, not tracebacks, "tracebacks in the log", len(tracebacks))
    for text in tracebacks[:3]:
        console.print(text[:2000], markup=False)
    report.add(table, True, "main process before, MiB", idle >> 20)
    console.print(table)


def _round(outcome: Outcome, main: psutil.Process, honest: Helper, attacker: Helper, attack: str) -> None:
    alone = _measure(honest, ALONE_SECONDS)
    peak = Peak(main)
    attacker.ask(attack)
    time.sleep(_SETTLE_SECONDS)
    before = main.cpu_times()
    beside = _measure(honest, BESIDE_SECONDS)
    after = main.cpu_times()
    outcome.answers = json.loads(attacker.ask())
    outcome.shares.append(beside["rate"] / alone["rate"] if alone["rate"] else 0.0)  # 0: an attack before it goes on
    outcome.least.append(min(a / max(b, 1e-9) for a, b in zip(beside["rates"], alone["rates"], strict=True)))
    outcome.alone.append(alone["rate"])
    outcome.slowest = max(outcome.slowest, beside["slowest"])
    outcome.errors += beside["errors"]
    outcome.wrong += beside["wrong"]
    outcome.last_error = beside["last_error"] if beside["errors"] else outcome.last_error
    outcome.peak = max(outcome.peak, peak.bytes)
    outcome.busy = (after.user + after.system - before.user - before.system) / beside["seconds"]
    time.sleep(_SETTLE_SECONDS)


def _measure(honest: Helper, seconds: float) -> dict[str, Any]:
    """What honest devices do within some seconds."""
    before = json.loads(honest.ask())
    time.sleep(seconds)
    after = json.loads(honest.ask())
    passed = after["at"] - before["at"]
    rates = [(b - a) / passed for a, b in zip(before["answers"], after["answers"], strict=True)]
    return {
        "rate": sum(rates),
        "rates": rates,
        "errors": after["errors"] - before["errors"],
        "wrong": after["wrong"] - before["wrong"],
        "slowest": after["slowest"],
        "last_error": after["last_error"],
        "seconds": passed,
    }
