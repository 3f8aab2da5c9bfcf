"""The one thread of a process that owns its engine, so that the rest may be as threaded as it likes."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, ClassVar, Concatenate, ParamSpec, TypeVar

from loadpart_common.engine.engine import Engine
from loadpart_common.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


class EngineExecutor:
    """Runs functions on the thread that owns the engine; each gets the engine as its first argument.

    MindSpore bears one thread a process, so all users in a process share one executor: `acquire` gives it, starting
    it for the first, and `release` ends it after the last.
    """

    _lock: ClassVar = threading.Lock()
    _shared: ClassVar[EngineExecutor | None] = None
    _users: ClassVar[int] = 0

    def __init__(self, threads: int, memory_limit_bytes: int) -> None:
        """Starts the thread, and MindSpore in it (a second or two, in the background)."""
        self.threads = threads
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loadpart-engine")
        self._engine = self._pool.submit(Engine, threads=threads, memory_limit_bytes=memory_limit_bytes)

    @classmethod
    def acquire(cls, *, threads: int, memory_limit_bytes: int) -> EngineExecutor:
        """The process's executor; the memory limit is that of the first who asks.

        Raises:
            SettingsError: It runs with another number of threads.
        """
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls(threads, memory_limit_bytes)
            elif cls._shared.threads != threads:
                raise SettingsError(
                    f"threads: expected {cls._shared.threads}, as for the other clients of this process, got {threads}"
                )
            cls._users += 1
            return cls._shared

    @classmethod
    def release(cls) -> None:
        """Gives the executor back; after the last user, the engine is dropped and the thread ends."""
        with cls._lock:
            cls._users -= 1
            if cls._users == 0 and cls._shared is not None:
                shared, cls._shared = cls._shared, None
                shared._close()

    def submit(self, function: Callable[Concatenate[Engine, P], T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Has the thread run `function(engine, ...)` after what was submitted before."""
        return self._pool.submit(lambda: function(self._engine.result(), *args, **kwargs))

    def run(self, function: Callable[Concatenate[Engine, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Like `submit`, and waits for the result."""
        return self.submit(function, *args, **kwargs).result()

    def _close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        # The thread has ended, so this one may touch the engine; at interpreter exit no other could be started.
        if not self._engine.cancelled() and self._engine.exception() is None:
            self._engine.result().close()
