"""A daemon that the benchmark kills, stops and starts again on the same port."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.request
from typing import TYPE_CHECKING

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.daemon import BIN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.testbed import SlowDevice

_READY_SECONDS = 120.0


class Server:
    """A daemon on a fixed port.

    Attributes:
        target: Where it listens.
        slow: The group of the slow device, which new processes have to be moved out of.
    """

    def __init__(self, address: str, port: int, arguments: Sequence[str], wrapper: Sequence[str], core: int) -> None:
        self.target = f"{address}:{port}"
        self.slow: SlowDevice | None = None
        self._metrics = f"{address}:{port + 1}"
        listen = ["--listen", self.target, "--metrics-listen", self._metrics, "--insecure"]
        self._command = [*wrapper, str(BIN / "loadpart-edge"), "serve", *listen, *arguments]
        self._core = core
        self._process: subprocess.Popen[str] | None = None

    @property
    def process(self) -> psutil.Process:
        """The daemon's main process."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    @property
    def worker(self) -> psutil.Process:
        """Its first worker process."""
        return next(each for each in self.process.children() if "loadpart_edge.workers" in " ".join(each.cmdline()))

    def start(self) -> float:
        """Starts it and waits until it is ready; gives the seconds that this took."""
        started = time.monotonic()
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        if self.slow is not None:
            self.slow.release(self._process.pid)
        os.sched_setaffinity(self._process.pid, {self._core})
        assert self._process.stdout is not None
        if "ready" not in self._process.stdout.readline():
            raise RuntimeError(f"the daemon did not start; exit code {self._process.wait()}")
        return time.monotonic() - started

    def kill(self) -> None:
        """Ends it with SIGKILL; its workers end by themselves."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def stop(self, seconds: float = 60.0) -> int:
        """Ends it with SIGTERM; gives the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(seconds)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code

    def close(self) -> None:
        """Ends it, whatever it does."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(psutil.Error):
                for process in [*self.process.children(), self.process]:
                    process.resume()
            self.kill()

    def metric(self, name: str) -> float:
        """The value of a metric of the daemon's, the sum of its labels."""
        with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=5) as response:
            families = text_string_to_metric_families(response.read().decode())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def wait_until(condition: Callable[[], bool], seconds: float) -> float | None:
    """Waits until a condition holds; gives the seconds that this took, None when it did not hold in time."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        with contextlib.suppress(OSError):
            if condition():
                return time.monotonic() - started
        time.sleep(0.02)
    return None
