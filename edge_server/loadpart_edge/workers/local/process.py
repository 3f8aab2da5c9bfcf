"""A worker process, as the daemon sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

from loadpart_edge.workers.local.messages import (
    LARGEST_BYTES,
    Done,
    Failed,
    Prepare,
    Prepared,
    Run,
    Slot,
    decode,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadpart_common.tensors import Array
    from loadpart_edge.settings import Settings

    Job = Prepare | Run
    Answer = Prepared | Done | Failed

_SLOT_MARGIN_BYTES = 1 << 20  # for the gaps between the tensors of a message of the largest size
_END_SECONDS = 5.0

log = logging.getLogger(__name__)


class WorkerProcess:
    """A worker process, the socket to it and the slot that it shares. One job at a time.

    Attributes:
        slot: Where a job's tensors are, and then its outputs.
        lost: Done when the process is gone.
    """

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket, slot: Slot) -> None:
        self.slot = slot
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._process = process
        self._socket = connection
        self._on_answer: Callable[[Answer], None] | None = None
        asyncio.get_running_loop().add_reader(connection, self._on_readable)

    @classmethod
    async def start(cls, settings: Settings, index: int) -> WorkerProcess:
        """Starts worker number `index`; it loads MindSpore while the first job waits."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        slot = Slot.create(settings.max_message_bytes + _SLOT_MARGIN_BYTES)
        with theirs:
            descriptors = (theirs.fileno(), slot.descriptor)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "loadpart_edge.workers.local.main", *map(str, descriptors),
                str(settings.worker_threads), str(settings.segment_memory_bytes), settings.log_level, ",".join(map(str, _cores(settings, index))),
                pass_fds=descriptors, stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        return cls(process, ours, slot)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def request(self, job: Job, tensors: list[Array], on_answer: Callable[[Answer], None]) -> None:
        """Has the worker do a job; `on_answer` gets the answer, unless the process is lost first.

        Raises:
            MessageTooLargeError: The tensors do not fit into the slot.
        """
        if isinstance(job, Run):
            job = Run(job.model, job.path, job.cut, job.batch, job.codec, self.slot.put(tensors))
        self._on_answer = on_answer
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then it is lost, as reading finds out
            self._socket.send(encode(job))

    async def close(self) -> None:
        """Ends the process: asks it to by closing its socket, and kills it when it takes too long."""
        if not self.lost.done():
            self._stop_reading()
        self._socket.close()
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            log.warning("worker %d is busy and is killed", self.pid)
            self._process.kill()
            await self._process.wait()
        self.slot.close()

    def _on_readable(self) -> None:
        """Hands out the answer that has come; without one, the process has ended."""
        try:
            data = self._socket.recv(LARGEST_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            self._stop_reading()
            self.lost.set_result(None)
            return
        on_answer, self._on_answer = self._on_answer, None
        if on_answer is not None:
            on_answer(decode(data))

    def _stop_reading(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)


def _cores(settings: Settings, index: int) -> list[int]:
    """The cores of a worker: its own, when there are enough for all, or else any."""
    cores = sorted(os.sched_getaffinity(0), reverse=True)  # from the last on: the first one has interrupts to serve
    threads = settings.worker_threads
    return cores[index * threads : (index + 1) * threads] if settings.workers * threads <= len(cores) else cores
