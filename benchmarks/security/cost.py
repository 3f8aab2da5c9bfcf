"""What TLS and tokens cost on a warm connection: probes of 150 kB to a plain daemon and to locked ones, in turn."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from rich.progress import track

from benchmarks.daemon import daemon
from benchmarks.security.doors import credentials
from benchmarks.security.honest import MODEL
from benchmarks.security.report import Report, console
from loadpart_common.wire.credentials import NO_CREDENTIALS, Credentials
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device.edges.connection import Connection

PAYLOAD_BYTES = 150_528  # an image of 224 by 224
ROUNDS, QUICK_ROUNDS, WARM = 1_000, 200, 50
LIMIT_SECONDS = 0.3e-3


def run(report: Report, store: str, *, quick: bool) -> None:
    """Times calls that differ in nothing but the door."""
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name) / "credentials"
        credentials("init", "--folder", folder)
        credentials("add", "device", "--folder", folder)
        device = folder / "devices" / "device"
        tls = ("--tls-certificate", f"{folder}/server.crt", "--tls-key", f"{folder}/server.key")
        clients, ca = ("--clients", f"{folder}/clients.toml"), folder / "ca.crt"
        token = device / "token"
        doors = {
            "in the clear": ((), NO_CREDENTIALS),
            "TLS": (tls, Credentials(ca)),
            "TLS and token": ((*tls, *clients), Credentials(ca, token_file=token)),
            "mutual TLS and token": (
                (*tls, *clients, "--tls-client-ca", str(ca)),
                Credentials(ca, device / "client.crt", device / "client.key", token_file=token),
            ),
        }
        connections = {}
        for door, (arguments, shown) in doors.items():
            options = ("--store", store, "--models", MODEL, "--threads", "1", *arguments)
            running = stack.enter_context(daemon(*options, cores={cores[-1]}, stderr=subprocess.DEVNULL))
            connections[door] = Connection(Endpoint(running.target, shown), 1 << 28)
            stack.callback(connections[door].close)
        os.sched_setaffinity(0, {cores[0]})
        try:
            payload = os.urandom(PAYLOAD_BYTES)
            times: dict[str, list[float]] = {door: [] for door in doors}
            rounds = QUICK_ROUNDS if quick else ROUNDS
            for number in track(range(WARM + rounds), description="cost", console=console, transient=True):
                for door, connection in connections.items():
                    started = time.perf_counter()
                    connection.probe(payload, 10.0)
                    if number >= WARM:
                        times[door].append(time.perf_counter() - started)
        finally:
            os.sched_setaffinity(0, set(cores))
    table = report.table(
        f"a call with {PAYLOAD_BYTES / 1e3:.0f} kB, {rounds} of each in turn; device on core {cores[0]}, servers on "
        f"core {cores[-1]}; at most {LIMIT_SECONDS * 1e3:.1f} ms more wanted at the median",
        "door", "median, ms", "10 to 90 %", "more, ms",
    )  # fmt: skip
    plain = statistics.median(times["in the clear"])
    for door, seconds in times.items():
        deciles = statistics.quantiles(seconds, n=10)
        more = statistics.median(seconds) - plain
        report.add(
            table, more <= LIMIT_SECONDS, door, f"{statistics.median(seconds) * 1e3:.2f}",
            f"{deciles[0] * 1e3:.2f} to {deciles[-1] * 1e3:.2f}", f"{more * 1e3:+.2f}",
        )  # fmt: skip
    console.print(table)
