"""A daemon that the benchmark kills, stops and starts again on the same port, and the link to it.

Both are kept by a process of its own: what commands and watching cost must not come out of the slow device's time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from multiprocessing.managers import BaseManager
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.daemon import BIN, metric

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.testbed import Link

_LOOK_SECONDS = 0.05


class Server:
    """A daemon on a fixed port, and on the same core as the process that keeps it."""

    def __init__(self, address: str, port: int, arguments: Sequence[str], wrapper: Sequence[str], core: int) -> None:
        self._metrics = f"{address}:{port + 1}"
        listen = ["--listen", f"{address}:{port}", "--metrics-listen", self._metrics, "--insecure"]
        self._command = [*wrapper, str(BIN / "loadpart-edge"), "serve", *listen, *arguments]
        os.sched_setaffinity(0, {core})
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> float:
        """Starts it and waits until it is ready; gives the seconds that this took."""
        started = time.monotonic()
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
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

    def stop(self) -> int:
        """Ends it with SIGTERM; gives the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(60)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code

    def suspend(self) -> None:
        """Stops its main process."""
        self._main().suspend()

    def resume(self) -> None:
        """Lets its main process go on."""
        self._main().resume()

    def kill_worker(self) -> None:
        """Ends its worker with SIGKILL."""
        self._worker().kill()

    def suspend_worker(self) -> None:
        """Stops its worker, which never goes on."""
        self._worker().suspend()

    def close(self) -> None:
        """Ends it, whatever it does."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(psutil.Error):
                for process in [*self._main().children(), self._main()]:
                    process.resume()
            self.kill()

    def metric(self, name: str) -> float:
        """The value of a metric of the daemon's without labels."""
        return metric(f"http://{self._metrics}/metrics", name)

    def wait_for(self, name: str, least: float, most: float, seconds: float) -> float | None:
        """Waits until a metric is within bounds; gives the seconds that this took, None when it was not in time."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            with contextlib.suppress(OSError):
                if least <= self.metric(name) <= most:
                    return time.monotonic() - started
            time.sleep(_LOOK_SECONDS)
        return None

    def _main(self) -> psutil.Process:
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def _worker(self) -> psutil.Process:
        return next(each for each in self._main().children() if "loadpart_edge.workers" in " ".join(each.cmdline()))


class _Keeper(BaseManager):
    """The process that keeps server and link."""


def _same(link: Link) -> Link:
    return link


_Keeper.register("Server", Server)
_Keeper.register("Link", _same)


@contextlib.contextmanager
def kept(link: Link, *arguments: Any) -> Iterator[Any]:
    """A `Server` and the link to it in a process of their own, for the block.

    Args:
        link: The link.
        arguments: As for `Server`.
    """
    keeper = _Keeper(ctx=multiprocessing.get_context("spawn"))
    keeper.start()
    server = keeper.Server(*arguments)  # type: ignore[attr-defined]
    try:
        yield server, keeper.Link(link)  # type: ignore[attr-defined]
    finally:
        server.close()
        keeper.shutdown()
