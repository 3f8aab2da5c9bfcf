"""What a worker is to the scheduler: it runs the tails of networks, one process or one machine away."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from loadpart_common.planning.plan import DEFAULT_CODEC

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.errors import OffloadError
    from loadpart_common.planning.plan import PlanKey
    from loadpart_common.store.model_store import StoredModel
    from loadpart_common.wire.framing import EncodedTensor


Dropped: TypeAlias = tuple[tuple[str, int, int], ...]
"""Tails by the digest of the model file, cut and batch size."""


class Job(NamedTuple):
    """A tail to run. It knows a model by its digest and its tensors by their bytes, so that any machine can take it.

    Attributes:
        digest: SHA-256 of the model file, in hexadecimal.
        plan: Where the network is cut, and how the tensors are encoded.
        batch: Items of the batch.
        tensors: The tensors that are live at the cut, as they came in the request.
        reply_codec: How the outputs are to be encoded.
    """

    digest: str
    plan: PlanKey
    batch: int
    tensors: tuple[EncodedTensor, ...]
    reply_codec: str = DEFAULT_CODEC


class Outcome(NamedTuple):
    """What a tail gave.

    Attributes:
        tensors: The outputs, written as the field `tensors` of the response.
        tail_seconds: Running the tail.
        build_seconds: Building the tail first, where it was not built.
        decode_seconds: Decoding the tensors before it ran.
        dropped: Tails that the worker had to drop from its memory.
    """

    tensors: bytes
    tail_seconds: float
    build_seconds: float
    decode_seconds: float = 0.0
    dropped: Dropped = ()

    @property
    def run_seconds(self) -> float:
        """All that it took but building, as it is predicted."""
        return self.decode_seconds + self.tail_seconds


class Preparation(NamedTuple):
    """A tail to build, unless it is built, and then to time on random tensors, for the smallest batch.

    Attributes:
        digest: SHA-256 of the model file, in hexadecimal.
        cut: Layers on the device.
        runs: How often to run it; 0 only builds it.
        batch: Items of the batch that it is built for.
    """

    digest: str
    cut: int
    runs: int = 5
    batch: int = 1


class Prepared(NamedTuple):
    """A tail is built.

    Attributes:
        seconds: Median of its runs, one item; 0 when there were none.
        resident_bytes: Memory of the worker.
        dropped: Tails that the worker had to drop from its memory.
    """

    seconds: float
    resident_bytes: int
    dropped: Dropped = ()


class WorkerOptions(NamedTuple):
    """How a worker computes, and what it may take.

    Attributes:
        threads: Threads of a worker.
        max_message_bytes: Largest message, and so the most that the tensors of a job take.
        segment_memory_bytes: Bound on the memory of a worker's compiled tails, weights left out.
        log_level: Level of a worker's log.
    """

    threads: int
    max_message_bytes: int
    segment_memory_bytes: int
    log_level: str


OnOutcome: TypeAlias = "Callable[[Outcome | OffloadError], None]"
OnPrepared: TypeAlias = "Callable[[Prepared | OffloadError], None]"


class RunnableModel(Protocol):
    """What a worker has to know of a model."""

    @property
    def stored(self) -> StoredModel:
        """Its file and manifest."""

    @property
    def setup(self) -> EngineSetup:
        """The engine that runs its tails, and how."""


class Worker(Protocol):
    """A worker that is ready to take jobs.

    Answers come through callbacks, not futures: a future wakes whoever waits one turn of the event loop later, which
    costs a tenth of a millisecond on a quiet machine.

    Attributes:
        host: Name of the machine that it computes on; slow-down and tail times are kept by host.
        capacity: How many jobs it takes at once.
        lost: Done when the worker is gone; jobs that it had are not answered any more.
        leaving: Done when its machine is to be taken away soon, so that it is to get nothing more to do.
        label: What logs and metrics call it.
    """

    host: str
    capacity: int
    lost: asyncio.Future[None]
    leaving: asyncio.Future[None]
    label: str

    def run(self, job: Job, on_outcome: OnOutcome) -> None:
        """Has the worker run a job; the callback gets its outcome, or the error that is the outcome.

        Raises:
            OffloadError: The job cannot be given to a worker at all, whatever its state.
        """

    def cancel(self, job: Job) -> None:
        """Tells that a job's outcome is not wanted any more: if it has not begun to run, it is not run."""

    def prepare(self, preparation: Preparation, on_prepared: OnPrepared) -> None:
        """Has the worker build a tail and time it."""

    def starved_seconds(self) -> float:
        """Seconds since it was last asked in which the worker wanted a core and had none; 0 where nobody knows."""

    def kill(self) -> None:
        """Ends the worker at once, whatever it does; `lost` is done soon after."""

    async def close(self) -> None:
        """Ends the worker when it has finished what it does, or after some seconds."""


class WorkerFactory(Protocol):
    """Makes workers."""

    async def start(self, seat: int) -> Worker:
        """Starts a worker for a seat, a number from 0 on; another one for the same seat replaces it."""
