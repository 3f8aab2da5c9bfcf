"""The one thread of a process that owns its engine, so that the rest may be as threaded as it likes."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

from loadpart_common.engines.mindspore.engine import Engine
from loadpart_common.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


class EngineExecutor:
    """Runs functions on the thread that owns the engine; each gets the engine as its first argument.

    MindSpore dead-locks now and then when several threads use it, even one after the other, so all users in a process
    share one executor: `acquire` gives it, starting it for the first, and `release` ends it after the last.
    """

    _sharing: ClassVar = threading.Lock()
    _shared: ClassVar[EngineExecutor | None] = None
    _users: ClassVar[int] = 0

    def __init__(self, threads: int, memory_limit_bytes: int) -> None:
        """Starts the thread, and MindSpore in it, which takes a second or two."""
        self.threads = threads
        self._engine: Engine | None = None
        self._memory_limit_bytes = memory_limit_bytes
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._later: deque[Callable[[], None]] = deque()  # each with one `_run_later` among the calls
        self._thread = threading.Thread(target=self._serve, name="loadpart-engine", daemon=True)
        self._thread.start()

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

    def submit(self, function: Callable[Concatenate[Engine, P], T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Has the thread run `function(engine, ...)` when it has nothing to `run`, after what was submitted before."""
        future: Future[T] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(self._started_engine(), *args, **kwargs))
                except BaseException as error:  # whoever waits gets it
                    future.set_exception(error)

        self._later.append(call)
        self._calls.put(self._run_later)
        return future

    def run(self, function: Callable[Concatenate[Engine, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Has the thread run `function(engine, ...)` next, and waits for the result.

        By a lock, which is quicker than a future.
        """
        done = threading.Lock()
        done.acquire()
        outcome: list[Any] = []

        def call() -> None:
            try:
                outcome.append(function(self._started_engine(), *args, **kwargs))
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
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _run_later(self) -> None:
        if self._calls.qsize() >= len(self._later):  # this one is of `_later`, so another is of `run`: it goes first
            self._calls.put(self._run_later)
        else:
            self._later.popleft()()

    def _started_engine(self) -> Engine:
        if self._engine is None:
            self._engine = Engine(threads=self.threads, memory_limit_bytes=self._memory_limit_bytes)
        return self._engine

    def _close(self) -> None:
        self._calls.put(None)
        self._thread.join()
