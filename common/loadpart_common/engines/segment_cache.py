"""The models of an engine and their compiled segments, kept within a bound of memory."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from loadpart_common.engines.adopted import adopt_into, adopted_folder, graph_in
from loadpart_common.errors import ClientClosedError, ModelError, ModelNotFoundError
from loadpart_common.formats.registry import FORMATS
from loadpart_common.scratch import ScratchFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from pathlib import Path

    from loadpart_common.engines.base import CompiledSegment, Engine, LoadedModel
    from loadpart_common.formats.base import OpenModel
    from loadpart_common.graph import Graph, Segment

DEFAULT_MEMORY_LIMIT_BYTES = 1 << 30


class CachedModel:
    """A model in a cache.

    Attributes:
        file: Its file, opened.
        loaded: The model in the engine.
        graph: The network, with the cuts that the engine has.
        users: How many have loaded it and not unloaded it yet.
    """

    def __init__(self, file: OpenModel, loaded: LoadedModel, graph: Graph, scratch: ScratchFolder | None) -> None:
        self.file = file
        self.loaded = loaded
        self.graph = graph
        self.users = 0
        self._scratch = scratch

    def close(self) -> None:
        """Drops weights and files."""
        self.loaded.close()
        self.file.close()
        if self._scratch is not None:
            self._scratch.close()


class SegmentCache:
    """Compiles segments when they are first asked for, and drops the least recently used ones beyond a limit.

    As thread-safe as its engine: one that needs a thread of its own must only be used from there.

    Attributes:
        engine: The engine.
        on_drop: Called with model, segment and batch size of a compiled segment that is dropped for lack of memory.
    """

    def __init__(self, engine: Engine, memory_limit_bytes: int = DEFAULT_MEMORY_LIMIT_BYTES) -> None:
        """Makes an empty cache.

        Args:
            engine: Compiles and runs.
            memory_limit_bytes: Bound on the estimated memory of compiled segments, weights left out.
        """
        self.engine = engine
        self.on_drop: Callable[[CachedModel, Segment, int], object] = lambda *_: None
        self._memory_limit_bytes = memory_limit_bytes
        self._lock = threading.RLock()
        self._models: dict[Hashable, CachedModel] = {}  # by the file's identity
        self._compiled: OrderedDict[tuple[int, int, int, int], tuple[CompiledSegment, CachedModel, Segment]]
        self._compiled = OrderedDict()

    def load(
        self, path: Path, format_name: str, digest: str | None = None, *, adopted: Path | None = None
    ) -> CachedModel:
        """Opens a model's file; whoever opens the same one again shares its weights and segments.

        Args:
            path: The file.
            format_name: Name of its format.
            digest: SHA-256 that it must have, in hexadecimal: another file may lie under the path by now. None takes
                any file.
            adopted: The folder with what the engine needs of the model; by default what it kept on this machine under
                the digest. An engine that needs such a folder and has none makes a temporary one, which takes seconds
                to minutes.

        Raises:
            ModelError: It is gone, damaged, another one, of another format, or holds what cannot be cut.
        """
        with self._lock:
            try:
                file = FORMATS[format_name].open(path)
            except ModelNotFoundError as error:
                raise ModelError("the model file has been removed") from error
            model = self._models.get(file.identity)
            if model is not None:
                file.close()
            else:
                try:
                    model = self._opened(file, digest, adopted)
                except BaseException:
                    file.close()
                    raise
                self._models[file.identity] = model
            model.users += 1
            return model

    def unload(self, model: CachedModel) -> None:
        """Gives a model back; after its last user it is dropped with its segments."""
        with self._lock:
            model.users -= 1
            if model.users > 0:
                return
            for key in [key for key in self._compiled if key[0] == id(model)]:
                del self._compiled[key]
            del self._models[model.file.identity]
            model.close()
            gc.collect()

    def is_compiled(self, model: CachedModel, segment: Segment, batch: int) -> bool:
        """Whether a segment can run without being compiled first."""
        return (id(model), segment.first, segment.stop, batch) in self._compiled

    def segment(self, model: CachedModel, segment: Segment, batch: int) -> CompiledSegment:
        """A compiled segment; compiled now (0.1 to 1 s) unless it is there already.

        Raises:
            ModelError: The engine cannot compile it.
            ClientClosedError: The model was unloaded meanwhile, by another thread.
        """
        key = (id(model), segment.first, segment.stop, batch)
        with self._lock:
            if model.users == 0:
                raise ClientClosedError("the model was unloaded when its client was closed: make another one")
            found = self._compiled.get(key)
            if found is not None:
                self._compiled.move_to_end(key)
                return found[0]
            compiled = model.loaded.compile(segment, batch)
            self._compiled[key] = (compiled, model, segment)
            while len(self._compiled) > 1 and self._held_bytes() > self._memory_limit_bytes:
                (*_, dropped_batch), (_, dropped_model, dropped) = self._compiled.popitem(last=False)
                self.on_drop(dropped_model, dropped, dropped_batch)
            return compiled

    def close(self) -> None:
        """Drops everything, and ends the engine."""
        with self._lock:
            self._compiled.clear()
            for model in self._models.values():
                model.close()
            self._models.clear()
            gc.collect()
            self.engine.close()

    def _opened(self, file: OpenModel, digest: str | None, adopted: Path | None) -> CachedModel:
        if digest is not None and (found := file.digest()) != digest:
            raise ModelError(
                f"the model file has been replaced or damaged: expected digest {digest[:12]}..., got {found[:12]}..."
            )
        setup, scratch = self.engine.setup, None
        if adopted is None and digest is not None:
            adopted = adopted_folder(setup, digest)
        if adopted is None and setup.engine.adopts:
            scratch = ScratchFolder("loadpart-adopted-")
            adopted = scratch.path
            adopt_into(adopted, setup, file)
        graph = file.graph if adopted is None else graph_in(adopted, file.graph)
        return CachedModel(file, self.engine.load(file, adopted), graph, scratch)

    def _held_bytes(self) -> int:
        return sum(compiled.nbytes for compiled, _, _ in self._compiled.values())
