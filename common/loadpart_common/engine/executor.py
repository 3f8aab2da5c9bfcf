"""The process's engine, shared by all who use it, one at a time."""

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
    """Runs functions with the engine as their first argument, one at a time.

    MindSpore dead-locks when two threads use it at once, but does not mind which thread it is. What is waited for
    therefore runs on the thread that asks, which saves two switches of threads, and only what is not runs on a thread
    of the executor's own. All users in a process share one executor: `acquire` gives it, making it for the first, and
    `release` ends it after the last.
    """

    _sharing: ClassVar = threading.Lock()
    _shared: ClassVar[EngineExecutor | None] = None
    _users: ClassVar[int] = 0

    def __init__(self, threads: int, memory_limit_bytes: int) -> None:
        """Starts MindSpore in the background, which takes a second or two."""
        self.threads = threads
        self._engine: Engine | None = None
        self._memory_limit_bytes = memory_limit_bytes
        self._using = threading.Lock()
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loadpart-engine")

    @classmethod
    def acquire(cls, *, threads: int, memory_limit_bytes: int) -> EngineExecutor:
        """The process's executor; the memory limit is that of the first who asks.

        Raises:
            SettingsError: It runs with another number of threads.
        """
        with cls._sharing:
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
        with cls._sharing:
            cls._users -= 1
            if cls._users == 0 and cls._shared is not None:
                shared, cls._shared = cls._shared, None
                shared._close()

    def run(self, function: Callable[Concatenate[Engine, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `function(engine, ...)` here, when nobody else uses the engine."""
        with self._using:
            if self._engine is None:
                self._engine = Engine(threads=self.threads, memory_limit_bytes=self._memory_limit_bytes)
            return function(self._engine, *args, **kwargs)

    def submit(self, function: Callable[Concatenate[Engine, P], T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Like `run`, in the background, after what was submitted before."""
        return self._background.submit(self.run, function, *args, **kwargs)

    def _close(self) -> None:
        self._background.shutdown(wait=True, cancel_futures=True)
        with self._using:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
