"""Results as JSON lines: first how they were measured, then a line for each condition and each trace."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.comparison.grid import Condition, Load
from loadpart_common.planning.plan import DEFAULT_CODEC

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1


@dataclass(slots=True)
class Sample:
    """One inference.

    Attributes:
        total: Seconds until the answer.
        cut: Layers that ran on the device.
        network: Seconds on the network.
        queue: Seconds in the server before the tail ran.
        tail: Seconds that the tail took.
        predicted: Seconds until the answer that the policy predicted; None when it made no prediction.
        megabits: The client's estimate of the link's rate before the inference, in Mbit/s; None when it had none.
        codec: Codec of what crossed; empty when nothing did.
    """

    total: float
    cut: int
    network: float
    queue: float
    tail: float
    predicted: float | None
    megabits: float | None
    codec: str = ""

    @property
    def plan(self) -> str:
        """Cut and codec, as people write them."""
        return f"{self.cut}:{self.codec}" if self.codec not in {"", DEFAULT_CODEC} else str(self.cut)


@dataclass(slots=True)
class Measured:
    """Results under one condition.

    Attributes:
        condition: The condition.
        whole: The cut that leaves everything on the device.
        device_factor: Time of the whole network on the slow device, divided by that on the same core at full speed.
        slow_down: Slow-down that the server reported; median over the rounds.
        backlog_seconds: Backlog of the server that load-aware expected; mean over the rounds.
        arms: The inferences of each policy and of each fixed cut, in the order of the rounds.
    """

    condition: Condition
    whole: int
    device_factor: float
    slow_down: float
    backlog_seconds: float
    arms: dict[str, list[Sample]]


@dataclass(slots=True)
class Moment:
    """One inference in a trace.

    Attributes:
        at: Seconds since the trace began.
        arm: The policy or fixed cut.
        sample: The inference.
    """

    at: float
    arm: str
    sample: Sample


@dataclass(slots=True)
class Traced:
    """Results of one trace.

    Attributes:
        name: The trace.
        network: The network that the device runs.
        whole: The cut that leaves everything on the device.
        device_factor: As for `Measured`.
        world: Changes of link and load: seconds since the trace began, Mbit/s, load.
        moments: The inferences, in order.
    """

    name: str
    network: str
    whole: int
    device_factor: float
    world: list[tuple[float, float, Load]]
    moments: list[Moment]


@dataclass(slots=True)
class Results:
    """A file of results.

    Attributes:
        how: How the results were measured: machine and settings, by name.
        measured: The conditions that were measured.
        traced: The traces.
    """

    how: dict[str, Any] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    traced: list[Traced] = field(default_factory=list)


class Writer:
    """Appends to a file of results; existing lines are kept, except for a last line that was cut short."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def how(self, **how: Any) -> None:
        self._write("how", how)

    def measured(self, measured: Measured) -> None:
        self._write("condition", asdict(measured))

    def traced(self, traced: Traced) -> None:
        self._write("trace", asdict(traced))

    def close(self) -> None:
        self._file.close()

    def _write(self, kind: str, document: dict[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind, "format": FORMAT} | _rounded(document)) + "\n")


def read(path: Path) -> Results:
    """Reads a file of results; a last line that was cut short is ignored.

    Raises:
        ValueError: A line is not a result of this benchmark; the message names the line.
    """
    results = Results()
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            document = json.loads(line)
            _take(results, document.pop("format"), document.pop("kind"), document)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if number == len(lines) and isinstance(error, json.JSONDecodeError):
                break
            raise ValueError(f"{path}, line {number}: not a result of this benchmark ({error!r})") from error
    return results


def _take(results: Results, version: int, kind: str, document: dict[str, Any]) -> None:
    if version != FORMAT:
        raise ValueError(f"expected format {FORMAT}, got {version!r}")
    match kind:
        case "how":
            results.how |= document
        case "condition":
            load = Load(**document["condition"].pop("load"))
            condition = Condition(load=load, **document.pop("condition"))
            arms = {arm: [Sample(**each) for each in samples] for arm, samples in document.pop("arms").items()}
            results.measured.append(Measured(condition=condition, arms=arms, **document))
        case "trace":
            world = [(at, megabits, Load(**load)) for at, megabits, load in document.pop("world")]
            moments = [Moment(each["at"], each["arm"], Sample(**each["sample"])) for each in document.pop("moments")]
            results.traced.append(Traced(world=world, moments=moments, **document))
        case _:
            raise ValueError(f"unknown kind {kind!r}")


def _rounded(value: Any) -> Any:
    """The same value with all numbers rounded to six decimal places."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
