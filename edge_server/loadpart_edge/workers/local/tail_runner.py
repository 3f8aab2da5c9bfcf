"""Builds and runs tails in a worker process."""

from __future__ import annotations

import gc
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS, codec_named
from loadpart_common.codecs.timing import make_ready
from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.registry import ENGINES
from loadpart_common.engines.segment_cache import SegmentCache
from loadpart_common.engines.timing import idle_seconds
from loadpart_common.errors import DeadlineError, InternalError, OffloadError
from loadpart_common.wire.framing import decode as decode_tensors
from loadpart_common.wire.framing import tensor_pieces
from loadpart_edge.workers.local.messages import Failed, PrepareTail, RunTail, TailPrepared, TailRan

if TYPE_CHECKING:
    from collections.abc import Collection

    from loadpart_common.engines.segment_cache import CachedModel
    from loadpart_common.graph import Segment
    from loadpart_edge.workers.base import Dropped
    from loadpart_edge.workers.local.slot import Slot

_LONGEST_TEXT = 10_000

log = logging.getLogger(__name__)


class TailRunner:
    """Builds and runs tails."""

    def __init__(self, slot: Slot, *, threads: int, memory_limit_bytes: int, cores: Collection[int]) -> None:
        self._slot = slot
        self._threads = threads
        self._memory_limit_bytes = memory_limit_bytes
        self._cores = cores
        self._caches: dict[EngineSetup, SegmentCache] = {}
        self._models: dict[str, tuple[SegmentCache, CachedModel]] = {}  # by digest
        self._dropped: list[tuple[str, int, int]] = []
        self._process = psutil.Process()
        make_ready(CODECS)

    def answer(self, message: PrepareTail | RunTail) -> TailPrepared | TailRan | Failed:
        """Does what a message asks for; what goes wrong is the answer, so that the worker lives on."""
        try:
            return self._prepare(message) if isinstance(message, PrepareTail) else self._run(message)
        except OffloadError as error:
            return Failed(error.code, str(error)[:_LONGEST_TEXT])  # a compiler's may be long
        except Exception:  # whatever the engine throws ends this job, not the worker
            log.exception("a job failed: %r", message)
            return Failed(InternalError.code, "the job failed inside the server; its log has the details")

    def close(self) -> None:
        """Ends the engines."""
        for cache in self._caches.values():
            cache.close()

    def _prepare(self, message: PrepareTail) -> TailPrepared:
        cache, model = self._model(message)
        tail = model.graph.tail(message.cut)
        cache.segment(model, tail, message.batch)
        seconds = idle_seconds(cache, model, tail, runs=message.runs) if message.runs else 0.0
        return TailPrepared(seconds, self._process.memory_info().rss, self._take_dropped())

    def _run(self, message: RunTail) -> TailRan:
        cache, model = self._model(message)
        codec, reply_codec = codec_named(message.codec), codec_named(message.reply_codec)
        started = time.perf_counter()
        compiled = cache.segment(model, model.graph.tail(message.cut), message.batch)
        built = time.perf_counter()
        if self._slot.is_cancelled:
            raise DeadlineError("nobody waits for the job any more")
        arrays = decode_tensors(self._slot.take(message.tensors), codec)
        decoded = time.perf_counter()
        outputs = compiled.run(arrays)
        ended = time.perf_counter()
        nbytes = self._slot.write(tensor_pieces(offload_pb2.InferResponse, outputs, reply_codec))
        return TailRan(nbytes, ended - decoded, built - started, decoded - built, self._take_dropped())

    def _model(self, message: PrepareTail | RunTail) -> tuple[SegmentCache, CachedModel]:
        found = self._models.get(message.digest)
        if found is None:
            cache = self._cache(message)
            model = cache.load(Path(message.path), message.format, message.digest)
            found = self._models[message.digest] = (cache, model)
        return found

    def _take_dropped(self) -> Dropped:
        """The tails that were dropped since it was last asked."""
        if not self._dropped:
            return ()
        dropped, self._dropped = self._dropped, []
        return tuple(dropped)

    def _drop(self, dropped: CachedModel, segment: Segment, batch: int) -> None:
        for digest, (_, model) in self._models.items():
            if model is dropped:
                self._dropped.append((digest, segment.first, batch))

    def _cache(self, message: PrepareTail | RunTail) -> SegmentCache:
        setup = EngineSetup(ENGINES[message.engine], self._threads, message.precision, message.provider)
        if setup not in self._caches:
            cache = self._caches[setup] = SegmentCache(setup.start(self._cores), self._memory_limit_bytes)
            cache.on_drop = self._drop
            gc.freeze()  # an engine's many objects live as long as the process: no collection need look at them
        return self._caches[setup]
