"""What was measured, as JSON lines: first how, then a line for each condition and each trace."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.comparison.grid import Condition, Load

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1


@dataclass(slots=True)
class Sample:
    """One inference.

    Attributes:
        total: Seconds until the answer.
        cut: Layers that ran on the device.
        network: Seconds on the way.
        queue: Seconds in the server before the tail ran.
        tail: Seconds that the tail ran.
        predicted: Seconds that the policy expected; None when it expects nothing.
        megabits: Rate of the link, in Mbit/s, as the client knew it before; None when it knew none.
    """

    total: float
    cut: int
    network: float
    queue: float
    tail: float
    predicted: float | None
    megabits: float | None


@dataclass(slots=True)
class Measured:
    """What was measured under a condition.

    Attributes:
        condition: The condition.
        whole: The cut that leaves everything on the device.
        device_factor: Seconds of the whole network on the slow device over those on the same core unslowed.
        slow_down: Of the server, as it told it; median over the rounds.
        backlog_seconds: Of the server, as devices expected it; mean over the rounds.
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
    """What was measured in a trace.

    Attributes:
        name: The trace.
        network: The network that the device runs.
        whole: The cut that leaves everything on the device.
        device_factor: As for `Measured`.
        world: When what changed: seconds since the trace began, Mbit/s, load.
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
        how: Under what conditions the benchmark ran, by name.
        measured: The conditions that were measured.
        traced: The traces.
    """

    how: dict[str, Any] = field(default_factory=dict)
    measured: list[Measured] = field(default_factory=list)
    traced: list[Traced] = field(default_factory=list)


class Writer:
    """Adds to a file of results; what is there is kept, but for a last line that was cut short."""

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
    """Reads a file of results; a last line that was cut short is passed over.

    Raises:
        ValueError: The file is something else; the message names the line.
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
    """The same with numbers to a microsecond."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value
