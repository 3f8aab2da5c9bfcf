"""The worker process: owns one engine and does one job after another for the daemon.

It is started with a connected socket, and ends when the daemon closes the other end or is gone.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import psutil

from loadpart_common.engine import Engine, LoadedModel
from loadpart_common.errors import InternalError, OffloadError
from loadpart_edge.messages import Done, Failed, Prepare, Prepared, Run, receive, send

if TYPE_CHECKING:
    from pathlib import Path

_TIMED_RUNS = 3

log = logging.getLogger(__name__)


class Worker:
    """Does jobs with an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._models: dict[Path, LoadedModel] = {}
        self._process = psutil.Process()

    def do(self, job: Prepare | Run) -> Prepared | Done | Failed:
        """Does a job; what goes wrong is the answer, so that the worker lives on."""
        try:
            return self._prepare(job) if isinstance(job, Prepare) else self._run(job)
        except OffloadError as error:
            return Failed(error)
        except Exception:  # whatever the engine throws ends this job, not the worker
            log.exception("a job failed: %r", job)
            return Failed(InternalError("the job failed inside the server; its log has the details"))

    def _prepare(self, job: Prepare) -> Prepared:
        model = self._model(job.path)
        segment = model.graph.tail(job.cut)
        batch = _smallest_batch(model)
        compiled = self._engine.segment(model, segment, batch)
        arrays = [np.zeros(model.graph.spec(value).concrete(batch), model.graph.spec(value).dtype) for value in segment.inputs]
        seconds = []
        for _ in range(_TIMED_RUNS):
            started = time.perf_counter()
            compiled.run(arrays)
            seconds.append(time.perf_counter() - started)
        return Prepared(min(seconds) / batch, self._process.memory_info().rss)

    def _run(self, job: Run) -> Done:
        model = self._model(job.path)
        started = time.perf_counter()
        compiled = self._engine.segment(model, model.graph.tail(job.cut), job.batch)
        built = time.perf_counter()
        outputs = compiled.run(job.arrays)
        return Done(outputs, time.perf_counter() - built, built - started)

    def _model(self, path: Path) -> LoadedModel:
        if path not in self._models:
            self._models[path] = self._engine.load(path)
        return self._models[path]


def _smallest_batch(model: LoadedModel) -> int:
    first = model.graph.inputs[0].shape
    return 1 if model.graph.takes_batches or not first else first[0]


def main() -> None:
    """Serves the socket whose descriptor is the first argument; then threads and memory limit of the engine."""
    descriptor, threads, memory_limit_bytes, level = sys.argv[1:]
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s worker[%(process)d] %(message)s")
    # The daemon decides when to end; a Ctrl-C in a terminal reaches all processes of the group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with socket.socket(fileno=int(descriptor)) as connection:
        engine = Engine(threads=int(threads), memory_limit_bytes=int(memory_limit_bytes))
        worker = Worker(engine)
        try:
            while True:
                send(connection, worker.do(receive(connection)))
        except (EOFError, BrokenPipeError, ConnectionResetError):
            pass
        finally:
            engine.close()


if __name__ == "__main__":
    main()
