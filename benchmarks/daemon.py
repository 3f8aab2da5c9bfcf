"""Starts a daemon for a benchmark or a test on a free port, and stops it at the end of the block."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from loadpart_common.wire.endpoint import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BIN = Path(sys.executable).parent
_END_SECONDS = 60


@dataclass
class Daemon:
    """A running daemon.

    Attributes:
        process: Its main process.
        target: Address where it listens, `HOST:PORT`.
        metrics: URL of its metrics; empty when it serves none.
        ready_seconds: Seconds from its start to its line on stdout.
        health: Address where it answers probes for health; empty when there is none.
    """

    process: subprocess.Popen[str]
    target: str
    metrics: str
    ready_seconds: float
    health: str = ""

    def stop(self) -> int:
        """Sends SIGTERM, waits for the end, and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_END_SECONDS)


@contextlib.contextmanager
def daemon(
    *arguments: str,
    cores: set[int] | None = None,
    stderr: int | None = None,
    address: str = "127.0.0.1",
    wrapper: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Daemon]:
    """Starts `loadpart-edge serve` on a free port, and stops it at the end of the block.

    Args:
        arguments: Further arguments.
        cores: Cores that it may use; all by default.
        stderr: Where its log goes, as for `subprocess.Popen`.
        address: Address where it listens; to another one than loopback it is open, as in a namespace it may be.
        wrapper: A command prefix that runs the daemon, such as in another network namespace.
        environment: Environment variables that it has besides those of this process.
    """
    started = time.monotonic()
    listen = ["--listen", f"{address}:0"]
    if not is_loopback(listen[-1]):
        listen.append("--insecure")
    process = subprocess.Popen(
        [*wrapper, str(BIN / "loadpart-edge"), "serve", *listen, *arguments],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env=os.environ | dict(environment or {}),
    )
    if cores is not None:  # threads and workers start later and inherit the cores
        os.sched_setaffinity(process.pid, cores)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if "ready" not in line:
            raise RuntimeError(f"the daemon did not start; exit code {process.wait()}")
        fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
        seconds = time.monotonic() - started
        running = Daemon(process, fields["listening"], fields.get("metrics", ""), seconds, fields.get("health", ""))
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(_END_SECONDS)
        process.stdout.close()


def metric(url: str, name: str, **labels: str) -> float:
    """The value of a metric with at least these labels; if several match, their sum."""
    with urllib.request.urlopen(url, timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = [sample for family in families for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name and labels.items() <= sample.labels.items())


def export_missing() -> None:
    """Exports the networks of the zoo that the model store (LOADPART_EDGE_STORE) lacks."""
    subprocess.run([BIN / "loadpart-edge", "export", "--missing"], check=True)


def conditions() -> str:
    """The machine and the versions, as one line of text."""
    import importlib.metadata
    import platform

    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mindspore", "grpcio", "numpy"))
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}"
