"""What settings say of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from loadpart_common.machine import usable_cores

EXACT = "exact"
"""The precision in which a network was written: results differ by rounding alone from those of any other engine."""

DEFAULT = "default"
"""Stands for the engine of reference where it is installed, and for the fastest one elsewhere."""

AUTO = "auto"
"""Stands for the fastest engine that is installed, as it is measured for each network."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """What settings say of the engine.

    Attributes:
        name: Name of an engine, `DEFAULT` or `AUTO`.
        threads: Threads that one operator may use; all cores by default.
        precision: `EXACT`, or one that the engine offers, such as `bfloat16`, which is quicker and less precise.
        provider: What the engine is to compute on, such as `cuda`; the processor when empty.
    """

    name: str = DEFAULT
    threads: int = 0
    precision: str = EXACT
    provider: str = ""

    def __post_init__(self) -> None:
        if not self.threads:
            object.__setattr__(self, "threads", usable_cores())
