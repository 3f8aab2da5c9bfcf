"""Minutes of everything that goes right and wrong, and what it leaves behind.

Devices infer with and without deadlines, some of which cannot be met; raw calls are cancelled; connections are cut, so
that devices reconnect, hedge and finish alone. Outputs must be right throughout, and memory, descriptors and threads
of daemon, worker and device must not grow: the slope of resident memory over requests, after a warm-up, is printed with
its 95 % confidence interval.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.daemon import conditions, daemon, export_missing
from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS
from loadpart_common.wire.framing import with_tensors
from loadpart_common.wire.methods import METHODS
from loadpart_device import OffloadClient

if TYPE_CHECKING:
    from collections.abc import Sequence

MODEL = "squeezenet"
THREADS = 3
CUT_SECONDS = 15.0
SAMPLE_SECONDS = 2.0
WARM_UP_SHARE = 0.3
MOST_BYTES_A_REQUEST = 1000.0  # a megabyte in a thousand requests
MOST_MORE = 2  # descriptors or threads, between the medians of the first and the last third after the warm-up

console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)


class Relay:
    """Carries connections to a server, and cuts all of them when it is told to."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Ends all connections."""
        with self._lock:
            for each in self._open:
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(self._server)
            with self._lock:
                self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        with self._lock:
            for each in (source, target):
                if each in self._open:
                    self._open.discard(each)
                    with contextlib.suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
                    each.close()


@dataclass
class Record:
    """What a process held, over the requests so far."""

    requests: list[int] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def sample(self, requests: int, process: psutil.Process) -> None:
        self.requests.append(requests)
        self.resident.append(process.memory_info().rss)
        self.descriptors.append(process.num_fds())
        self.threads.append(process.num_threads())

    def slope(self) -> tuple[float, float]:
        """Bytes a request, and half of the 95 % confidence interval, after the warm-up.

        Neighbouring samples are alike; means of some samples are not, so the line is fitted to those.
        """
        first = int(len(self.requests) * WARM_UP_SHARE)
        size = max((len(self.requests) - first) // 20, 1)
        x, y = (blocks(values[first:], size) for values in (self.requests, self.resident))
        slope, rest = np.polyfit(x, y, 1)
        errors = y - (slope * x + rest)
        deviation = math.sqrt(float((errors**2).sum()) / max(len(x) - 2, 1) / float(((x - x.mean()) ** 2).sum()))
        return float(slope), 2.1 * deviation

    def more(self, values: Sequence[int]) -> float:
        """By how much the median of the last third is above that of the first third after the warm-up."""
        after = values[int(len(values) * WARM_UP_SHARE) :]
        third = max(len(after) // 3, 1)
        return float(np.median(after[-third:]) - np.median(after[:third]))


def blocks(values: Sequence[int], size: int) -> Any:
    usable = len(values) // size * size
    return np.asarray(values[:usable], float).reshape(-1, size).mean(axis=1)


def device(target: str, seconds: float) -> None:
    """The device's process; prints a line of JSON now and then."""
    image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    counts: Counter[str] = Counter()
    lock = threading.Lock()
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as cache, OffloadClient(target, MODEL, threads=1, cache=cache) as client:
        client.policy = "local"
        expected = client.infer(image).output
        client.policy = "offload"

        def infer(seed: int) -> None:
            rng = random.Random(seed)
            while time.monotonic() < end:
                result = client.infer(image, deadline=rng.choice([None, None, 1.0, 0.05, 0.01]))
                with lock:
                    counts["requests"] += 1
                    counts["wrong"] += not np.array_equal(result.output, expected)
                    for what in ("hedged", "resumed", "late"):
                        counts[what] += getattr(result, what)
                    counts[result.plan.location] += 1

        def cancel(seed: int) -> None:
            rng = random.Random(seed)
            head = offload_pb2.InferRequest(model=MODEL, digest=client.digest, codec="raw")
            request = with_tensors(head, [image], CODECS["raw"])
            with grpc.insecure_channel(target) as channel:
                call: Any = channel.unary_unary(METHODS["Infer"].path)
                while time.monotonic() < end:
                    pending = call.future(request, timeout=rng.choice([0.02, 5.0]))
                    time.sleep(rng.uniform(0.0, 0.1))
                    pending.cancel()
                    with lock:
                        counts["cancelled"] += 1

        threads = [threading.Thread(target=infer, args=(seed,)) for seed in range(THREADS)]
        threads.append(threading.Thread(target=cancel, args=(99,)))
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(SAMPLE_SECONDS / 2)
            with lock:
                print(json.dumps(counts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--quick", action="store_true", help="two minutes")
    parser.add_argument("--device", nargs=2, metavar=("TARGET", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device:
        device(options.device[0], float(options.device[1]))
        return
    seconds = 120.0 if options.quick else options.minutes * 60
    export_missing()
    records = {name: Record() for name in ("daemon", "worker", "device")}
    counts: dict[str, int] = {}
    cores = sorted(os.sched_getaffinity(0))
    with daemon("--models", MODEL, "--threads", "1", "--workers", "1", cores={cores[-1]}) as server:
        relay = Relay(server.target)
        main_process = psutil.Process(server.process.pid)
        processes = {"daemon": main_process, "worker": main_process.children()[0]}
        command = [sys.executable, "-m", "benchmarks.soak", "--device", relay.target, str(seconds)]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        os.sched_setaffinity(running.pid, {cores[0]})
        processes["device"] = psutil.Process(running.pid)
        assert running.stdout is not None
        cut_at = sample_at = time.monotonic() + CUT_SECONDS
        with Progress(console=console, transient=True) as bar:
            task, started = bar.add_task("soaking", total=seconds), time.monotonic()
            for line in running.stdout:
                counts = json.loads(line)
                now = time.monotonic()
                bar.update(task, completed=now - started)
                if now >= cut_at:
                    relay.cut()
                    cut_at = now + CUT_SECONDS
                if now >= sample_at and running.poll() is None:
                    sample_at = now + SAMPLE_SECONDS
                    for name, process in processes.items():
                        records[name].sample(counts.get("requests", 0) + counts.get("cancelled", 0), process)
        code = running.wait()
        alive = main_process.children()[0].pid == processes["worker"].pid
    console.print(conditions())
    console.print(", ".join(f"{number} {what}" for what, number in counts.items()))
    table = Table("process", "MB", "bytes a request", "95 %", "descriptors", "threads", "", box=None)
    failed = bool(code or counts.get("wrong") or not alive)
    for name, record in records.items():
        slope, error = record.slope()
        descriptors, threads = record.more(record.descriptors), record.more(record.threads)
        passed = slope - error <= MOST_BYTES_A_REQUEST and max(descriptors, threads) <= MOST_MORE
        failed |= not passed
        table.add_row(
            name, f"{record.resident[-1] / 1e6:.0f}", f"{slope:+.0f}", f"{slope - error:+.0f} to {slope + error:+.0f}",
            f"{descriptors:+.0f}", f"{threads:+.0f}", "PASS" if passed else "FAIL",
        )  # fmt: skip
    console.print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
