"""The messages that calls wait for, and the memory that those take which are on their way.

gRPC looks at the size of a message when it has all of it: a read that is under way may hold any number of bytes,
whatever limit is set. So the memory of the process is watched while reads are under way, and some of them are ended
when it grows beyond its bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from loadpart_common.errors import DeadlineError, RequestError
from loadpart_edge.rpc.quota import QuotaError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_RECEIVE_SECONDS = 30.0
"""In which a message of at most 1 MiB has to come."""

_LOOK_SECONDS = 0.05
_ENDED_SHARE = 8  # of the reads under way, each time that memory is short
_SPARE_BYTES = 256 << 20
"""What the process may grow by besides requests: buffers of connections, answers on their way, garbage."""


class _Read:
    """A read under way."""

    def __init__(self, timeout: asyncio.Timeout) -> None:
        self.timeout = timeout
        self.is_ended = False


class PendingReads:
    """Reads messages of calls, and ends reads when there is no room for them.

    It is always the connection with the most reads that loses its oldest one: names of devices are cheap, but nobody
    can have reads on another one's connection.
    """

    def __init__(self, memory_bytes: int, memory: Callable[[], int] | None = None) -> None:
        """Makes one.

        Args:
            memory_bytes: What the process may grow by for requests, from the first one on.
            memory: Gives the memory of the process, in bytes.
        """
        self._most = memory_bytes + _SPARE_BYTES
        self._memory = memory or private_bytes
        self._base: int | None = None
        self._look: asyncio.TimerHandle | None = None
        self._by_connection: dict[str, list[_Read]] = {}  # by peer

    async def read(self, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        """The next message of a call.

        Raises:
            QuotaError: The read was ended to make room.
            DeadlineError: The message did not come in time.
            RequestError: There is none.
        """
        peer, read = context.peer(), _Read(asyncio.timeout(_RECEIVE_SECONDS))
        try:
            async with read.timeout:
                self._begin(peer, read)
                try:
                    message = await context.read()
                finally:
                    self._end(peer, read)
        except TimeoutError as error:
            if read.is_ended:
                raise QuotaError("too many requests are on their way on this connection", 1.0) from error
            raise DeadlineError(f"expected the request within {_RECEIVE_SECONDS:g} s") from error
        if message is grpc.aio.EOF:
            raise RequestError("expected a request, got the end of the stream")
        data: bytes = message
        return data

    def _begin(self, peer: str, read: _Read) -> None:
        self._by_connection.setdefault(peer, []).append(read)
        if self._look is None:
            if self._base is None:
                self._base = self._memory()
            self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._bound_memory)

    def _end(self, peer: str, read: _Read) -> None:
        reads = self._by_connection[peer]
        reads.remove(read)
        if not reads:
            del self._by_connection[peer]

    def _end_some(self) -> None:
        """Ends a part of the reads, always the oldest of the connection with the most."""
        left = [[read for read in reads if not read.is_ended] for reads in self._by_connection.values()]
        now = asyncio.get_running_loop().time()
        for _ in range(-(-sum(map(len, left)) // _ENDED_SHARE)):
            read = max(left, key=len).pop(0)
            read.is_ended = True
            read.timeout.reschedule(now)

    def _bound_memory(self) -> None:
        self._look = None
        if not self._by_connection:
            return
        assert self._base is not None
        if self._memory() > self._base + self._most:
            _return_memory()
            if self._memory() > self._base + self._most:
                self._end_some()
        self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._bound_memory)


def private_bytes() -> int:
    """Resident memory of this process that it shares with no other one."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _return_memory() -> None:
    """Gives freed memory back to the kernel, where the C library can do that."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
