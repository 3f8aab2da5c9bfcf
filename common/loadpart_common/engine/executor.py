"""The one thread that owns an engine, so that the rest of a process may be as threaded as it likes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Self, TypeVar

from loadpart_common.engine.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


class EngineExecutor:
    """Runs functions on the thread that owns an engine; each gets the engine as its first argument."""

    def __init__(self, *, threads: int, memory_limit_bytes: int) -> None:
        """Starts the thread, and MindSpore in it (a second or two, in the background)."""
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loadpart-engine")
        self._engine = self._pool.submit(lambda: Engine(threads=threads, memory_limit_bytes=memory_limit_bytes))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self, function: Callable[Concatenate[Engine, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Has the thread run `function(engine, ...)` after what was submitted before."""
        return self._pool.submit(lambda: function(self._engine.result(), *args, **kwargs))

    def run(self, function: Callable[Concatenate[Engine, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `submit`, and waits for the result."""
        return self.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        """Drops the engine and ends the thread; what is queued is cancelled, what runs is waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        last = ThreadPoolExecutor(max_workers=1)
        try:
            self._pool.shutdown(wait=True)
            if not self._engine.cancelled() and self._engine.exception() is None:
                last.submit(self._engine.result().close).result()
        finally:
            last.shutdown()
