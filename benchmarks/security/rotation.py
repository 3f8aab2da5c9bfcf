"""The server's certificate and a device's token and certificate are exchanged while it infers."""

from __future__ import annotations

import subprocess
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.daemon import BIN, Daemon
from benchmarks.security.honest import MODEL
from benchmarks.security.report import Report, console
from loadpart_common.errors import OffloadError
from loadpart_common.wire.credentials import Credentials
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device import OffloadClient

if TYPE_CHECKING:
    from pathlib import Path

THREADS, ROTATIONS, PAUSE_SECONDS = 4, 4, 1.5
NAME = "rotating"


def run(report: Report, server: Daemon, folder: Path, cache: str, *, quick: bool) -> None:
    """Rotates credentials while four threads infer, and counts what is not answered by the server."""
    device = folder / "devices" / NAME
    shown = Credentials(folder / "ca.crt", device / "client.crt", device / "client.key", token_file=device / "token")
    table = report.table(f"rotation while {THREADS} threads infer", "what", "figure")
    done: Counter[str] = Counter()
    why: Counter[str] = Counter()
    stop = threading.Event()
    with OffloadClient(
        Endpoint(server.target, shown), MODEL, policy="offload", cache=cache, threads=1, hedge=False
    ) as client:
        client.wait_ready()
        image = np.zeros(client.graph.inputs[0].concrete(1), np.uint8)

        def infer() -> None:
            while not stop.is_set():
                try:
                    plan = client.infer(image).plan
                except OffloadError as error:
                    done["failed"] += 1
                    why[f"{type(error).__name__}: {error}"] += 1
                else:
                    done[plan.location] += 1
                    if plan.location != "offload":
                        why[plan.reason] += 1

        threads = [threading.Thread(target=infer) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        served = {_serial(server, folder)}
        rotations = 1 if quick else ROTATIONS
        for _ in range(rotations):
            for arguments in (("init", "--renew-server"), ("add", NAME, "--replace")):
                subprocess.run(
                    [BIN / "loadpart-edge", "credentials", *arguments, "--folder", str(folder)],
                    check=True, capture_output=True,
                )  # fmt: skip
                time.sleep(PAUSE_SECONDS)
            served.add(_serial(server, folder))
        stop.set()
        for thread in threads:
            thread.join()
    report.add(table, done["offload"] > 0, "answered by the server", done["offload"])
    report.add(table, not done["failed"], "failed", done["failed"])
    report.add(table, not done["local"] + done["split"], "on the device", done["local"] + done["split"])
    report.add(table, len(served) == rotations + 1, "certificates that the server showed", len(served))
    for text, number in why.most_common(4):
        report.add(table, False, text[:100], number)
    console.print(table)


def _serial(server: Daemon, folder: Path) -> str:
    """The serial number of the certificate that the server shows now, which also proves a raw client is let in."""
    device = folder / "devices" / "full"
    ended = subprocess.run(
        [
            *("openssl", "s_client", "-connect", server.target, "-CAfile", str(folder / "ca.crt")),
            *("-cert", str(device / "client.crt"), "-key", str(device / "client.key")),
        ],
        input=b"", capture_output=True, check=False, timeout=20,
    )  # fmt: skip
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-serial"], input=ended.stdout, capture_output=True, check=True
    )
    return shown.stdout.decode().strip()
