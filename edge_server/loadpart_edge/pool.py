"""A worker process, as the daemon sees it."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import TYPE_CHECKING, overload

from loadpart_edge.messages import Done, Failed, Prepare, Prepared, Run, receive_async, send_async

if TYPE_CHECKING:
    from loadpart_edge.settings import Settings

_SEND_BUFFER_BYTES = 4 << 20  # one piece of most tensors; the system caps it at what it allows
_END_SECONDS = 5.0

log = logging.getLogger(__name__)


class WorkerDiedError(Exception):
    """The process ended before it answered."""


class WorkerProcess:
    """A worker process and the socket to it. One request at a time."""

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket) -> None:
        self._process = process
        self._connection = connection
        self.pid = process.pid

    @classmethod
    async def start(cls, settings: Settings) -> WorkerProcess:
        """Starts a process; it loads MindSpore while the first request waits."""
        ours, theirs = socket.socketpair()
        with theirs:
            for end in (ours, theirs):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            ours.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "loadpart_edge.worker", str(theirs.fileno()), str(settings.worker_threads),
                str(settings.segment_memory_bytes), settings.log_level,
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        return cls(process, ours)

    @overload
    async def request(self, job: Prepare) -> Prepared: ...
    @overload
    async def request(self, job: Run) -> Done: ...
    async def request(self, job: Prepare | Run) -> Prepared | Done:
        """Has the worker do a job.

        Raises:
            WorkerDiedError: The process ended before it answered.
            OffloadError: The job cannot be done.
        """
        loop = asyncio.get_running_loop()
        try:
            await send_async(loop, self._connection, job)
            answer = await receive_async(loop, self._connection)
        except (EOFError, OSError) as error:
            raise WorkerDiedError(f"worker {self.pid} died") from error
        if isinstance(answer, Failed):
            raise answer.error
        return answer  # type: ignore[no-any-return]

    async def close(self) -> None:
        """Ends the process: asks it to by closing its socket, and kills it when it takes too long."""
        self._connection.close()
        try:
            await asyncio.wait_for(self._process.wait(), _END_SECONDS)
        except TimeoutError:
            log.warning("worker %d is busy and is killed", self.pid)
            self._process.kill()
            await self._process.wait()
