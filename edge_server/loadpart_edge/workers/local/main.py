"""The worker process: runs one message after another for the daemon.

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
from typing import TYPE_CHECKING

import psutil

from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import codec_named
from loadpart_common.engines.registry import engine_for
from loadpart_common.engines.segment_cache import SegmentCache
from loadpart_common.engines.timing import idle_seconds
from loadpart_common.errors import InternalError, OffloadError
from loadpart_common.wire.framing import decode as decode_tensors
from loadpart_common.wire.framing import tensor_pieces
from loadpart_edge.workers.local.messages import (
    LARGEST_BYTES,
    Failed,
    PrepareTail,
    RunTail,
    TailPrepared,
    TailRan,
    decode,
    encode,
)
from loadpart_edge.workers.local.slot import Slot

if TYPE_CHECKING:
    from collections.abc import Collection

    from loadpart_common.engines.segment_cache import CachedModel

_LONGEST_TEXT = 10_000

log = logging.getLogger(__name__)


class TailRunner:
    """Builds and runs tails."""

    def __init__(self, slot: Slot, *, threads: int, memory_limit_bytes: int, cores: Collection[int]) -> None:
        self._slot = slot
        self._threads = threads
        self._memory_limit_bytes = memory_limit_bytes
        self._cores = cores
        self._caches: dict[str, SegmentCache] = {}  # by the engine's name
        self._models: dict[str, tuple[SegmentCache, CachedModel]] = {}  # by path
        self._process = psutil.Process()

    def answer(self, message: PrepareTail | RunTail) -> TailPrepared | TailRan | Failed:
        """Does what a message asks for; what goes wrong is the answer, so that the worker lives on."""
        try:
            return self._prepare(message) if isinstance(message, PrepareTail) else self._run(message)
        except OffloadError as error:
            return Failed(type(error)(str(error)[:_LONGEST_TEXT]))  # a compiler's may be long
        except Exception:  # whatever the engine throws ends this job, not the worker
            log.exception("a job failed: %r", message)
            return Failed(InternalError("the job failed inside the server; its log has the details"))

    def close(self) -> None:
        """Ends the engines."""
        for cache in self._caches.values():
            cache.close()

    def _prepare(self, message: PrepareTail) -> TailPrepared:
        cache, model = self._model(message.path, message.format)
        seconds = idle_seconds(cache, model, model.graph.tail(message.cut), runs=message.runs)
        return TailPrepared(seconds, self._process.memory_info().rss)

    def _run(self, message: RunTail) -> TailRan:
        cache, model = self._model(message.path, message.format)
        codec = codec_named(message.codec)
        started = time.perf_counter()
        compiled = cache.segment(model, model.graph.tail(message.cut), message.batch)
        built = time.perf_counter()
        outputs = compiled.run(decode_tensors(self._slot.take(message.tensors), codec))
        ended = time.perf_counter()
        nbytes = self._slot.write(tensor_pieces(offload_pb2.InferResponse, outputs, codec))
        return TailRan(nbytes, ended - built, built - started)

    def _model(self, path: str, format_name: str) -> tuple[SegmentCache, CachedModel]:
        found = self._models.get(path)
        if found is None:
            cache = self._cache(format_name)
            found = self._models[path] = (cache, cache.load(Path(path), format_name))
        return found

    def _cache(self, format_name: str) -> SegmentCache:
        engine = engine_for(format_name)
        if engine.name not in self._caches:
            started = engine(threads=self._threads, cores=self._cores)
            self._caches[engine.name] = SegmentCache(started, self._memory_limit_bytes)
            gc.freeze()  # an engine's many objects live as long as the process: no collection need look at them
        return self._caches[engine.name]


def main() -> None:
    """Serves a socket; takes descriptors of the socket and the slot, threads, memory limit, log level and cores."""
    connection_descriptor, slot_descriptor, threads, memory_limit_bytes, level, cores = sys.argv[1:]
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s worker[%(process)d] %(message)s")
    # The daemon decides when to end; a Ctrl-C in a terminal reaches all processes of the group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    runner = TailRunner(
        Slot(int(slot_descriptor)),
        threads=int(threads),
        memory_limit_bytes=int(memory_limit_bytes),
        cores=[int(core) for core in cores.split(",")],
    )
    with socket.socket(fileno=int(connection_descriptor)) as connection:
        try:
            while data := connection.recv(LARGEST_BYTES):
                connection.send(encode(runner.answer(decode(data))))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon is gone
        finally:
            runner.close()


if __name__ == "__main__":
    main()
