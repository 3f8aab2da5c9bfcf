"""Gives all users in a process one engine each kind, on the thread that it needs."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

from loadpart_common.engines.segment_cache import SegmentCache
from loadpart_common.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.engines.base import Engine

P = ParamSpec("P")
T = TypeVar("T")


class EngineExecutor:
    """Runs functions with an engine's segment cache as their first argument.

    Users in a process share an executor: `acquire` gives it, starting it for the first user, and `release` ends it
    after the last. An engine that needs a thread of its own gets one, and every function runs there. For any other
    engine `run` calls the function at once, on the caller's thread, and the executor's thread only builds.
    """

    _sharing: ClassVar = threading.Lock()
    _shared: ClassVar[dict[tuple[str, int], EngineExecutor]] = {}  # see `_key`

    def __init__(self, engine: type[Engine], threads: int, memory_limit_bytes: int) -> None:
        """Starts the thread; the engine itself is started on it by the first function, which may take seconds."""
        self.threads = threads
        self._engine = engine
        self._users = 0
        self._memory_limit_bytes = memory_limit_bytes
        self._starting = threading.Lock()
        self._cache: SegmentCache | None = None
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._background: deque[Callable[[], None]] = deque()  # each has a `_run_background` among the calls
        self._thread = threading.Thread(target=self._serve, name=f"loadpart-{engine.name}", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, engine: type[Engine], *, threads: int, memory_limit_bytes: int) -> EngineExecutor:
        """The process's executor of an engine; the memory limit is that of the first who asks.

        Raises:
            SettingsError: It runs with another number of threads.
        """
        with cls._sharing:
            key = cls._key(engine, threads)
            shared = cls._shared.get(key)
            if shared is None:
                shared = cls._shared[key] = cls(engine, threads, memory_limit_bytes)
            elif shared.threads != threads:
                raise SettingsError(
                    f"threads: expected {shared.threads}, as for the other clients of this process, got {threads}"
                )
            shared._users += 1
            return shared

    @staticmethod
    def _key(engine: type[Engine], threads: int) -> tuple[str, int]:
        """Users who share an executor have the same key; an engine with fixed threads has one executor."""
        return (engine.name, 0 if engine.threads_fixed_for_process else threads)

    def release(self) -> None:
        """Gives the executor back; after the last user, the engine is closed and the thread ends."""
        with self._sharing:
            self._users -= 1
            if self._users == 0:
                del self._shared[self._key(self._engine, self.threads)]
                self._calls.put(None)
                self._thread.join()

    def submit(
        self, function: Callable[Concatenate[SegmentCache, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Has the thread call `function(cache, ...)` when it has nothing to `run`, after what was submitted before."""
        future: Future[T] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(self._started(), *args, **kwargs))
                except BaseException as error:  # whoever waits gets it
                    future.set_exception(error)

        self._background.append(call)
        self._calls.put(self._run_background)
        return future

    def run(self, function: Callable[Concatenate[SegmentCache, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `function(cache, ...)` before anything that was submitted, and gives its result."""
        if not self._engine.needs_own_thread:
            return function(self._started(), *args, **kwargs)
        done = threading.Lock()  # quicker than a future
        done.acquire()
        outcome: list[Any] = []

        def call() -> None:
            try:
                outcome.append(function(self._started(), *args, **kwargs))
            except BaseException as error:  # whoever waits gets it
                outcome.extend((None, error))
            done.release()

        self._calls.put(call)
        done.acquire()
        if len(outcome) > 1:
            raise outcome[1]
        return outcome[0]  # type: ignore[no-any-return]

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    def _run_background(self) -> None:
        # As many calls as background work, this one not counted, mean that a `run` waits: it goes first.
        if self._calls.qsize() >= len(self._background):
            self._calls.put(self._run_background)
        else:
            self._background.popleft()()

    def _started(self) -> SegmentCache:
        cache = self._cache
        if cache is None:
            with self._starting:
                if self._cache is None:
                    self._cache = SegmentCache(self._engine(threads=self.threads), self._memory_limit_bytes)
                cache = self._cache
        return cache
