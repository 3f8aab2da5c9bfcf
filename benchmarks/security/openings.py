"""What may be open to a network, and what is said of it."""

from __future__ import annotations

import signal
import subprocess
import time
from typing import TYPE_CHECKING

from benchmarks.daemon import BIN
from benchmarks.security.honest import MODEL
from benchmarks.security.report import Report, console

if TYPE_CHECKING:
    from pathlib import Path

_START_SECONDS = 90.0


def openings(report: Report, store: str, keys: Path) -> None:
    """Starts daemons on addresses that a network can reach."""
    tls = ("--tls-certificate", f"{keys}/server.crt", "--tls-key", f"{keys}/server.key")
    mutual, clients = ("--tls-client-ca", f"{keys}/ca.crt"), ("--clients", f"{keys}/clients.toml")
    every, here = ("--listen", "0.0.0.0:0"), ("--listen", "127.0.0.1:0")
    metrics = ("--metrics-listen", "0.0.0.0:0")
    clear, anybody = "is not encrypted", "asks nobody for a credential"
    refused = "is open to a network"
    table = report.table("addresses that a network can reach", "settings", "expected", "found")
    for name, arguments, expected, says in (
        ("nothing", every, refused, ()),
        ("TLS alone", (*every, *tls), refused, ()),
        ("tokens alone", (*every, *clients), refused, ()),
        ("TLS and tokens", (*every, *tls, *clients), "", ()),
        ("mutual TLS", (*every, *tls, *mutual), "", ()),
        ("--insecure", (*every, "--insecure"), "", (clear, anybody)),
        ("--insecure with TLS", (*every, *tls, "--insecure"), "", (anybody,)),
        ("--insecure with tokens", (*every, *clients, "--insecure"), "", (clear,)),
        ("metrics, nothing", (*here, *metrics), refused, ()),
        ("metrics, TLS and tokens", (*here, *metrics, *tls, *clients), refused, ()),
        ("metrics, mutual TLS", (*here, *metrics, *tls, *mutual), "", ()),
        ("metrics, --insecure", (*here, *metrics, "--insecure"), "", ("metrics",)),
    ):
        is_ready, log = _start("--store", store, "--models", MODEL, *arguments)
        if expected:
            is_good = not is_ready and expected in log
        else:
            warned = [line for line in log.splitlines() if "WARNING" in line and "confined" not in line]
            is_good = is_ready and len(warned) == len(says) and all(any(say in w for w in warned) for say in says)
        found = "ready; " if is_ready else "ended; "
        lines = [line for line in log.splitlines() if "WARNING" in line or "error" in line]
        report.add(table, is_good, name, expected or ", ".join(says) or "ready", found + " | ".join(lines)[:150])
    console.print(table)


def _start(*arguments: str) -> tuple[bool, str]:
    """Starts a daemon; gives whether it got ready, and its log."""
    process = subprocess.Popen(
        [BIN / "loadpart-edge", "serve", "--threads", "1", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    started = time.monotonic()
    is_ready = "ready" in process.stdout.readline()
    if time.monotonic() - started > _START_SECONDS:
        is_ready = False
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    return is_ready, process.communicate(timeout=60)[1]
