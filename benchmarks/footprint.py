"""Start time and memory of a daemon with all seven networks, and the time that importing the SDK takes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.daemon import conditions, daemon, export_missing
from loadpart_common.engines.mindspore.zoo import NETWORKS
from loadpart_common.store.model_store import ModelStore

IMPORTS = 7
LIMIT_READY_SECONDS, LIMIT_GIGABYTES, LIMIT_IMPORT_SECONDS = 90.0, 4.0, 0.5

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def main() -> None:
    export_missing()
    store = ModelStore(Path(os.environ["LOADPART_EDGE_STORE"]))
    weights = sum(layer.weight_bytes for name in NETWORKS for layer in store.open(name).graph.layers)
    with daemon("--models", ",".join(NETWORKS), "--workers", "1") as server:
        main_process = psutil.Process(server.process.pid)
        processes = [("main", main_process), *(("worker", child) for child in main_process.children())]
        memory = [(name, process.memory_full_info()) for name, process in processes]
        ready = server.ready_seconds
    table = Table("process", "resident MB", "its own MB", header_style="bold")
    for name, info in memory:
        table.add_row(name, f"{info.rss / 1e6:.0f}", f"{info.uss / 1e6:.0f}")
    total = sum(info.rss for _, info in memory) / 1e9
    seconds = importing()
    console.print(conditions())
    console.print(f"ready after {ready:.1f} s, at most {LIMIT_READY_SECONDS:.0f} wanted")
    console.print(table)
    console.print(
        f"together {total:.2f} GB, at most {LIMIT_GIGABYTES:.0f} wanted; weights alone {weights / 1e9:.2f} GB"
    )
    console.print(f"import loadpart_device: {seconds:.2f} s, at most {LIMIT_IMPORT_SECONDS} wanted")
    if ready > LIMIT_READY_SECONDS or total > LIMIT_GIGABYTES or seconds > LIMIT_IMPORT_SECONDS:
        sys.exit(1)


def importing() -> float:
    """Median seconds of importing the SDK, less those of starting Python."""
    readings: dict[str, list[float]] = {"import loadpart_device": [], "pass": []}
    for _ in range(IMPORTS):
        for code, seconds in readings.items():
            started = time.monotonic()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds.append(time.monotonic() - started)
    with_import, without = (statistics.median(seconds) for seconds in readings.values())
    return with_import - without


if __name__ == "__main__":
    main()
