"""A thread for Ray's own calls: they block while its control service is away."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import ray

if TYPE_CHECKING:
    from collections.abc import Callable

_Result = TypeVar("_Result")


class RayThread:
    """Makes one call after another; the process does not wait for it at its end.

    The processes of an own cluster end with the thread that started them.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = SimpleQueue()
        threading.Thread(target=self._run, name="loadpart-ray", daemon=True).start()

    def send(self, function: Callable[[], object]) -> None:
        """Has a function called when its turn comes."""
        self._calls.put((function, Future()))

    async def call(self, function: Callable[[], _Result]) -> _Result:
        """Calls a function when its turn comes, unless that is cancelled before, and waits for what it gives."""
        future: Future[_Result] = Future()
        self._calls.put((function, future))
        return await asyncio.wrap_future(future)

    def abandon(self, code: int) -> None:
        """Has the process end without another word to the cluster: Ray would wait for an answer, and crash without it.

        Args:
            code: The exit code.
        """
        atexit.unregister(ray.shutdown)
        atexit.register(os._exit, code)

    def _run(self) -> None:
        while True:
            function, future = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = function()
            except BaseException as error:  # whoever waits gets it
                future.set_exception(error)
            else:
                future.set_result(result)
