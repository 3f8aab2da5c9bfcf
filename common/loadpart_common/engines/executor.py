"""Gives all users in a process one engine each kind, on the thread that it needs."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar

from loadpart_common import forks
from loadpart_common.engines.segment_cache import SegmentCache
from loadpart_common.errors import ClientClosedError, ModelError, OffloadError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.engines.base import Engine, EngineSetup

P = ParamSpec("P")
T = TypeVar("T")


class EngineExecutor:
    """Runs functions with an engine's segment cache as their first argument.

    Users in a process share an executor: `acquire` gives it, starting it for the first user, and `release` ends it
    after the last. An engine that needs a thread of its own gets one, and every function runs there. For any other
    engine `run` calls the function at once, on the caller's thread, and the executor's thread only builds.

    An engine that cannot start gives everyone who calls a function the same error. After its end an executor raises
    `ClientClosedError`; what was asked for before is still done if the engine was started.
    """

    _sharing: ClassVar = threading.Lock()
    _shared: ClassVar[dict[EngineSetup, EngineExecutor]] = {}  # see `_key`

    def __init__(self, setup: EngineSetup, memory_limit_bytes: int) -> None:
        """Starts the thread, which starts the engine; that may take seconds.

        Raises:
            SettingsError: This process is a fork of one that had an engine.
        """
        forks.begin_use()
        self.setup = setup
        self._engine = setup.engine
        self._users = 0
        self._memory_limit_bytes = memory_limit_bytes
        self._starting = threading.Lock()
        self._start_ended = threading.Event()
        self._failure: OffloadError | None = None  # why the engine does not start
        self._cache: SegmentCache | None = None
        self._asking = threading.Lock()  # guards what follows
        self._ended = False
        self._when_started: list[Callable[[], object]] = []
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._background: deque[Callable[[], None]] = deque()  # each has a `_run_background` among the calls
        self._thread = threading.Thread(target=self._serve, name=f"loadpart-{setup.engine.name}", daemon=True)
        # The interpreter waits for a thread that is no daemon before it begins to tear down. An engine that is being
        # imported and started meanwhile, on a daemon thread, would crash it.
        self._guard = threading.Thread(target=self._start_ended.wait, name=f"{self._thread.name}-start", daemon=False)
        self._guard.start()
        self._thread.start()

    @classmethod
    def acquire(cls, setup: EngineSetup, *, memory_limit_bytes: int) -> EngineExecutor:
        """The process's executor of an engine; the memory limit is that of the first who asks.

        Raises:
            SettingsError: It runs with another number of threads, or this process is a fork of one that had an engine.
        """
        with cls._sharing:
            key = cls._key(setup)
            shared = cls._shared.get(key)
            if shared is None:
                shared = cls._shared[key] = cls(setup, memory_limit_bytes)
            elif shared.setup != setup:
                raise SettingsError(
                    f"threads: expected {shared.setup.threads}, as for the other clients of this process, "
                    f"got {setup.threads}"
                )
            shared._users += 1
            return shared

    @staticmethod
    def _key(setup: EngineSetup) -> EngineSetup:
        """Users who share an executor have the same key; an engine with fixed threads has one executor."""
        return setup.with_threads(0) if setup.engine.threads_fixed_for_process else setup

    def release(self) -> None:
        """Gives the executor back; after the last user, the engine is closed and the thread ends."""
        with self._sharing:
            self._users -= 1
            if self._users == 0:
                del self._shared[self._key(self.setup)]
                with self._asking:
                    self._ended = True
                    self._calls.put(None)
                self._thread.join()
                self._guard.join()

    def when_started(self, function: Callable[[], object]) -> None:
        """Has a function called once the engine is started: before it runs anything, and before the process may end."""
        with self._asking:
            if not self._start_ended.is_set():
                self._when_started.append(function)
                return
        function()

    def submit(
        self, function: Callable[Concatenate[SegmentCache, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Has the thread call `function(cache, ...)` when it has nothing to `run`, after what was submitted before.

        Raises:
            ClientClosedError: The executor has ended.
        """
        future: Future[T] = Future()
        with self._asking:
            self._check_open()
            self._background.append(self._fulfilling(future, function, *args, **kwargs))
            self._calls.put(self._run_background)
        return future

    def run(self, function: Callable[Concatenate[SegmentCache, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls `function(cache, ...)` before anything that was submitted, and gives its result.

        Raises:
            ClientClosedError: The executor has ended.
        """
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

        with self._asking:
            self._check_open()
            self._calls.put(call)
        done.acquire()
        if len(outcome) > 1:
            raise outcome[1]
        return outcome[0]  # type: ignore[no-any-return]

    def start(
        self, function: Callable[Concatenate[SegmentCache, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Has the thread call `function(cache, ...)` before anything that was submitted; does not wait for it.

        Raises:
            ClientClosedError: The executor has ended.
        """
        future: Future[T] = Future()
        with self._asking:
            self._check_open()
            self._calls.put(self._fulfilling(future, function, *args, **kwargs))
        return future

    def _fulfilling(
        self,
        future: Future[T],
        function: Callable[Concatenate[SegmentCache, P], T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Callable[[], None]:
        """What the thread does for a future, unless that is cancelled before."""

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(self._started(), *args, **kwargs))
                except BaseException as error:  # whoever waits gets it
                    future.set_exception(error)

        return call

    def _check_open(self) -> None:
        if self._ended:
            raise ClientClosedError("the engine was closed with its last client: make another one")

    def _serve(self) -> None:
        with contextlib.suppress(OffloadError):  # which everyone who calls a function gets
            self._started()
        with self._asking:
            for function in self._when_started:
                function()
            self._start_ended.set()
        while (call := self._calls.get()) is not None:
            call()
        with self._starting:
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
                    self._check_open()
                    self._cache = SegmentCache(self._start(), self._memory_limit_bytes)
                cache = self._cache
        return cache

    def _start(self) -> Engine:
        """Starts the engine; it is not tried again after it has failed, since half of it may be there.

        Raises:
            OffloadError: It does not start.
        """
        if self._failure is None:
            try:
                return self.setup.start()
            except OffloadError as error:
                self._failure = error
            except (Exception, SystemExit) as error:  # whatever an engine throws must not end the thread
                self._failure = ModelError(f"the engine {self._engine.name} does not start: {error!r}")
                self._failure.__cause__ = error
        raise type(self._failure)(str(self._failure)) from self._failure
