"""What an engine is to the rest of the project."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from loadpart_common.engines.choice import EXACT
from loadpart_common.errors import SettingsError
from loadpart_common.machine import instruction_set, processor_name

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from loadpart_common.formats.base import OpenModel
    from loadpart_common.graph import Graph, Segment
    from loadpart_common.tensors import Array


class CompiledSegment(Protocol):
    """A segment that is ready to run for one batch size.

    Attributes:
        nbytes: An estimate of the memory that it holds in bytes, weights left out.
    """

    nbytes: int

    def run(self, arrays: list[Array]) -> list[Array]:
        """Runs the segment.

        Args:
            arrays: The segment's inputs, in its order, of the shapes that it was compiled for.

        Returns:
            Its outputs, in its order.
        """


class LoadedModel(Protocol):
    """A model in an engine: its weights, which all of its segments share."""

    def compile(self, segment: Segment, batch: int) -> CompiledSegment:
        """Makes a segment ready for a batch size; takes 0.1 to 1 s on most engines.

        Raises:
            ModelError: The engine cannot compile it.
        """

    def close(self) -> None:
        """Drops the weights."""


_NUMERICS_LETTERS = 16

_FIXED_BYTES = 1 << 20
"""Memory of a compiled segment besides the values that flow through it."""


def compiled_bytes(graph: Graph, segment: Segment, batch: int) -> int:
    """An estimate of the memory that a compiled segment holds, weights left out."""
    layers = graph.layers[segment.first : segment.stop]
    return sum(spec.nbytes(batch) for layer in layers for spec in layer.outputs[:1]) + _FIXED_BYTES


class Engine(ABC):
    """An engine in a process.

    Attributes:
        name: What settings, measurements and the protocol call it.
        formats: Names of the model formats that it takes.
        adopts: Whether `adopt` does anything.
        precisions: The precisions that it offers on some machines.
        bits_depend_on_threads: Whether another number of threads may give other bits.
        needs_own_thread: Whether everything must happen on one thread; if not, any thread may run segments.
        threads_fixed_for_process: Whether the number of threads can be chosen only once in a process's life.
        setup: How it was started.
    """

    name: ClassVar[str]
    formats: ClassVar[frozenset[str]]
    adopts: ClassVar[bool] = False
    precisions: ClassVar[tuple[str, ...]] = (EXACT,)
    bits_depend_on_threads: ClassVar[bool] = False
    needs_own_thread: ClassVar[bool]
    threads_fixed_for_process: ClassVar[bool]
    setup: EngineSetup

    @abstractmethod
    def __init__(self, setup: EngineSetup, *, cores: Collection[int] | None = None) -> None:
        """Starts the engine.

        Args:
            setup: How it is to compute.
            cores: Cores to compute on; the first so many of those allowed by default.

        Raises:
            SettingsError: The process's engine runs with another number of threads.
        """

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Name and version, such as `mindspore 2.8.0`; imports nothing heavy."""

    @classmethod
    def is_installed(cls) -> bool:
        """Whether its package is there; imports nothing heavy."""
        return True

    @classmethod
    def check_precision(cls, precision: str, provider: str) -> None:
        """Checks that the engine offers a precision on what it is to compute on.

        Raises:
            SettingsError: It does not; the message lists those that it offers.
        """
        del provider
        if precision not in cls.precisions:
            raise SettingsError(f"precision: {cls.name} offers {' or '.join(cls.precisions)}, got {precision!r}")

    @classmethod
    def check_provider(cls, provider: str) -> None:
        """Checks that the engine can compute on something other than the processor.

        Raises:
            SettingsError: It cannot; the message lists what it can compute on here.
        """
        raise SettingsError(f"provider: {cls.name} computes on the processor alone, got {provider!r}")

    @classmethod
    def why_not(cls, model: OpenModel) -> str | None:
        """Why the engine cannot run a model of one of `formats`, as far as a look at it tells; None when it can."""
        del model
        return None

    @classmethod
    def adopt(cls, model: OpenModel, folder: Path, setup: EngineSetup) -> Collection[int] | None:
        """Does once for a network, on each machine, what the engine needs before it runs segments of it.

        Args:
            model: A model of one of `formats`.
            setup: How the engine is to compute.
            folder: An empty folder, for what `load` is to find.

        Returns:
            The cuts at which the engine can cut it; None when it can at all.

        Raises:
            ModelError: The engine cannot run the network; the message names the operator.
        """
        del model, folder, setup
        return None

    @classmethod
    def cuts_must_be_tried(cls, setup: EngineSetup) -> bool:
        """Whether segments give other bits than the whole network at some of the cuts that `adopt` returns."""
        del setup
        return False

    @abstractmethod
    def load(self, model: OpenModel, adopted: Path | None) -> LoadedModel:
        """Takes in a model of one of `formats`; weights are read when a segment first needs them.

        Args:
            model: The model.
            adopted: The folder that `adopt` has filled; None for an engine that adopts nothing.
        """

    @abstractmethod
    def close(self) -> None:
        """Ends the engine; all models are closed before."""

    @classmethod
    def write_random_network(cls, seed: int, folder: Path) -> Path:
        """Writes a network for calibrating: the operators of convolutional networks at sizes that a seed draws.

        Returns:
            The model file.

        Raises:
            SettingsError: The engine has no such networks, and cannot be calibrated.
        """
        del seed, folder
        raise SettingsError(f"engine: {cls.name} has no networks to calibrate with")


@dataclass(frozen=True, slots=True)
class EngineSetup:
    """An engine and how it computes.

    Attributes:
        engine: The engine.
        threads: Threads that one operator may use.
        precision: See `EngineChoice`.
        provider: See `EngineChoice`.
    """

    engine: type[Engine]
    threads: int
    precision: str = EXACT
    provider: str = ""

    def start(self, cores: Collection[int] | None = None) -> Engine:
        """Starts the engine.

        Args:
            cores: Cores to compute on; the first so many of those allowed by default.

        Raises:
            SettingsError: The process's engine runs with another number of threads.
        """
        return self.engine(self, cores=cores)

    @property
    def version(self) -> str:
        """Name and version of the engine and how it computes, such as `openvino 2026.4.1 bfloat16`."""
        parts = (self.engine.version(), self.provider, "" if self.precision == EXACT else self.precision)
        return " ".join(filter(None, parts))

    @property
    def numerics(self) -> str:
        """What stands for the bits of results: where it is equal, they are, for batches of one size.

        Engines choose their operators by what the processor is and can do, caches among that; some share an operator
        among threads in a way that shows in the last bit.
        """
        threads = self.threads if self.engine.bits_depend_on_threads else 0
        key = f"{self.version}|{threads}|{processor_name()}|{instruction_set()}"
        return hashlib.sha256(key.encode()).hexdigest()[:_NUMERICS_LETTERS]

    def with_threads(self, threads: int) -> EngineSetup:
        """The same with another number of threads."""
        return replace(self, threads=threads)

    def __str__(self) -> str:
        return f"{self.version}, {self.threads} thread{'s' if self.threads > 1 else ''}"
