"""The worker process: owns one engine and does one job after another for the daemon.

It is started with a connected socket, and ends when the daemon closes the other end or is gone.
"""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
import time
from pathlib import Path

import psutil

from loadpart.v1 import offload_pb2
from loadpart_common.engines import Engine, LoadedModel
from loadpart_common.errors import InternalError, OffloadError
from loadpart_common.wire.framing import codec_named, tensor_pieces
from loadpart_edge.workers.local.messages import (
    LARGEST_BYTES,
    Done,
    Failed,
    Prepare,
    Prepared,
    Run,
    Slot,
    decode,
    encode,
)

_LONGEST_TEXT = 10_000

log = logging.getLogger(__name__)


class Worker:
    """Does jobs with an engine."""

    def __init__(self, engine: Engine, slot: Slot) -> None:
        self._engine = engine
        self._slot = slot
        self._models: dict[str, LoadedModel] = {}
        self._process = psutil.Process()

    def do(self, job: Prepare | Run) -> Prepared | Done | Failed:
        """Does a job; what goes wrong is the answer, so that the worker lives on."""
        try:
            return self._prepare(job) if isinstance(job, Prepare) else self._run(job)
        except OffloadError as error:
            return Failed(type(error)(str(error)[:_LONGEST_TEXT]))  # a compiler's may be long
        except Exception:  # whatever the engine throws ends this job, not the worker
            log.exception("a job failed: %r", job)
            return Failed(InternalError("the job failed inside the server; its log has the details"))

    def _prepare(self, job: Prepare) -> Prepared:
        model = self._model(job.path)
        seconds = self._engine.idle_seconds(model, model.graph.tail(job.cut), runs=job.runs)
        return Prepared(seconds, self._process.memory_info().rss)

    def _run(self, job: Run) -> Done:
        model = self._model(job.path)
        started = time.perf_counter()
        compiled = self._engine.segment(model, model.graph.tail(job.cut), job.batch)
        built = time.perf_counter()
        outputs = compiled.run(self._slot.views(job.tensors))
        ended = time.perf_counter()
        pieces = tensor_pieces(offload_pb2.InferResponse, outputs, codec_named(job.codec))
        return Done(self._slot.write(pieces), ended - built, built - started)

    def _model(self, path: str) -> LoadedModel:
        if path not in self._models:
            self._models[path] = self._engine.load(Path(path))
        return self._models[path]


def main() -> None:
    """Serves a socket: descriptors of the socket and the slot, threads, memory limit, log level, cores."""
    connection_descriptor, slot_descriptor, threads, memory_limit_bytes, level, cores = sys.argv[1:]
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s worker[%(process)d] %(message)s")
    # The daemon decides when to end; a Ctrl-C in a terminal reaches all processes of the group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    slot = Slot(int(slot_descriptor))
    with socket.socket(fileno=int(connection_descriptor)) as connection:
        engine = Engine(
            threads=int(threads),
            memory_limit_bytes=int(memory_limit_bytes),
            cores=[int(core) for core in cores.split(",")],
        )
        worker = Worker(engine, slot)
        gc.freeze()  # MindSpore's many objects live as long as the process: no collection need look at them
        try:
            while data := connection.recv(LARGEST_BYTES):
                connection.send(encode(worker.do(decode(data))))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon is gone
        finally:
            engine.close()


if __name__ == "__main__":
    main()
