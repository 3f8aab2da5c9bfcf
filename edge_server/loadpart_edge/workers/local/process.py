"""A worker process, as the daemon sees it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadpart_common.scratch import remove_abandoned
from loadpart_edge.workers.base import Outcome, Prepared
from loadpart_edge.workers.local.main import SCRATCH_PREFIX
from loadpart_edge.workers.local.messages import (
    LARGEST_BYTES,
    Failed,
    PrepareTail,
    RunTail,
    TailPrepared,
    TailRan,
    decode_answer,
    encode_order,
)
from loadpart_edge.workers.local.slot import Slot

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from loadpart_edge.workers.base import Job, OnOutcome, OnPrepared, Preparation, RunnableModel, WorkerOptions

HOST = "local"
"""All worker processes of a daemon share this machine."""

_SLOT_MARGIN_BYTES = 1 << 20  # for the gaps between the tensors of a message of the largest size, and more
_END_SECONDS = 5.0

log = logging.getLogger(__name__)


class WorkerProcess:
    """A worker process, the socket to it and the slot that it shares; see `workers.base.Worker`."""

    host = HOST
    capacity = 1

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        connection: socket.socket,
        slot: Slot,
        find_model: Callable[[str], RunnableModel],
        seat: int,
    ) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.leaving: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # this machine stays
        self.label = str(seat)
        self._process = process
        self._socket = connection
        self._slot = slot
        self._find_model = find_model
        self._on_answer: Callable[[Any], None] | None = None
        self._waited: dict[str, float] = {}
        asyncio.get_running_loop().add_reader(connection, self._on_readable)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def run(self, job: Job, on_outcome: OnOutcome) -> None:
        """See `Worker.run`.

        Raises:
            MessageTooLargeError: The tensors do not fit into the slot.
        """
        model = self._find_model(job.digest)
        placed = self._slot.put(job.tensors)

        def on_answer(answer: TailRan | Failed) -> None:
            if isinstance(answer, TailRan):
                tensors = self._slot.read(answer.nbytes)
                on_outcome(Outcome(tensors, *answer[1:]))
            else:
                on_outcome(answer.error)

        plan = job.plan
        order = RunTail(*_order(model), plan.cut, plan.codec, job.reply_codec, job.batch, placed)
        self._send(order, on_answer)

    def cancel(self, job: Job) -> None:  # noqa: ARG002  # it has one at a time
        """See `Worker.cancel`."""
        self._slot.cancel()

    def prepare(self, preparation: Preparation, on_prepared: OnPrepared) -> None:
        """See `Worker.prepare`."""
        model = self._find_model(preparation.digest)

        def on_answer(answer: TailPrepared | Failed) -> None:
            on_prepared(Prepared(*answer) if isinstance(answer, TailPrepared) else answer.error)

        order = PrepareTail(*_order(model), preparation.cut, preparation.batch, preparation.runs)
        self._send(order, on_answer)

    def starved_seconds(self) -> float:
        """See `Worker.starved_seconds`: of its threads the one counts that waited longest.

        The kernel counts for each thread how long it was ready to run while others ran (Documentation/scheduler/
        sched-stats).
        """
        before, self._waited = self._waited, waited_seconds(self.pid)
        return max((seconds - before.get(thread, 0.0) for thread, seconds in self._waited.items()), default=0.0)

    def kill(self) -> None:
        """See `Worker.kill`."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """Ends the process: asks it to by closing its socket, and kills it when it takes too long."""
        self._stop_reading()
        self._socket.close()
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            log.warning("worker %d is busy and is killed", self.pid)
            self._process.kill()
            await self._process.wait()
        self._slot.close()
        remove_abandoned(SCRATCH_PREFIX)  # a confined process cannot remove its own

    def _send(self, message: RunTail | PrepareTail, on_answer: Callable[[Any], None]) -> None:
        self._on_answer = on_answer
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then it is lost, as reading finds out
            self._socket.send(encode_order(message))

    def _on_readable(self) -> None:
        """Hands out the answer that has come; without one, the process has ended."""
        try:
            data = self._socket.recv(LARGEST_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            self._stop_reading()
            if not self.lost.done():  # cancelled with the task that waits for it, when the daemon ends
                self.lost.set_result(None)
            return
        on_answer, self._on_answer = self._on_answer, None
        if on_answer is not None:
            try:
                answer = decode_answer(data)
            except ValueError:
                log.exception("worker %d answers what is no answer, and is ended", self.pid)
                self.kill()
                return
            on_answer(answer)

    def _stop_reading(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)


def waited_seconds(pid: int) -> dict[str, float]:
    """Seconds that each thread of a process has waited for a core so far; none where the kernel does not count them."""
    waited = {}
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # the thread has ended meanwhile
            waited[path.parent.name] = int(path.read_text().split()[1]) * 1e-9
    return waited


def without_ray(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables without those of Ray, which the token of the cluster is one of."""
    return {name: value for name, value in variables.items() if not name.startswith("RAY_")}


def _order(model: RunnableModel) -> tuple[str, str, str, str, str, str]:
    """What every message says of a model."""
    setup, manifest = model.setup, model.stored.manifest
    return setup.engine.name, setup.precision, setup.provider, str(model.stored.path), manifest.format, manifest.digest


class LocalWorkers:
    """Starts worker processes; see `workers.base.WorkerFactory`."""

    def __init__(
        self, find_model: Callable[[str], RunnableModel], options: WorkerOptions, *, workers: int | None
    ) -> None:
        """Makes a factory.

        Args:
            find_model: Gives the model with a digest.
            options: How a worker computes, and what it may take.
            workers: How many workers there will be on this machine; None when others, too, start some.
        """
        self._find_model = find_model
        self._options = options
        self._workers = workers

    async def start(self, seat: int) -> WorkerProcess:
        """Starts a process; it loads its engine while the first job waits."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs, contextlib.ExitStack() as unless_started:
            unless_started.callback(remove_abandoned, SCRATCH_PREFIX)  # cancelled, it is killed when it may have one
            unless_started.callback(ours.close)
            slot = Slot.create(self._options.max_message_bytes + _SLOT_MARGIN_BYTES)
            unless_started.callback(slot.close)
            descriptors = (theirs.fileno(), slot.descriptor)
            cores = ",".join(map(str, self._cores(seat)))
            options = self._options
            arguments = (*descriptors, options.threads, options.segment_memory_bytes, options.log_level, cores)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "loadpart_edge.workers.local.main", *map(str, arguments)),
                pass_fds=descriptors,
                stdin=asyncio.subprocess.DEVNULL,
                env=without_ray(os.environ),
            )
            unless_started.pop_all()
        return WorkerProcess(process, ours, slot, self._find_model, seat)

    def _cores(self, seat: int) -> list[int]:
        """The cores of a worker: its own when there are enough for all, or else any."""
        cores = sorted(os.sched_getaffinity(0), reverse=True)  # from the last on: the first one has interrupts to serve
        threads = self._options.threads
        if self._workers is None or self._workers * threads > len(cores):
            return cores
        return cores[seat * threads : (seat + 1) * threads]
