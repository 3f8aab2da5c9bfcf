"""Decisions as JSON lines: written while the application runs, read and made again offline."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from loadpart_common.errors import SettingsError
from loadpart_common.planning.plans import Plans, Point, Weights
from loadpart_device.deciding.policies import ADAPTIVE, LoadAware, ServerLoad, World
from loadpart_device.edges.link import LinkReading

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadpart_device.deciding.policies import Choice
    from loadpart_device.result import Timings

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision: what was known, what was chosen, and what came of it.

    Attributes:
        model: Name of the model.
        policy: Name of the policy.
        whole: The cut that leaves everything on the device.
        reply_bytes: Bytes of an answer, one item.
        batch: Items of the batch.
        plans: The plans that were there to choose from.
        world: What was known.
        weights: What the policy made of it; None when nothing was weighed.
        current: The cut before.
        waited: Whether that cut was kept by chance, for the sake of other devices.
        cut: What was chosen.
        predicted_seconds: The latency that was expected; None when unknown.
        total_seconds: The latency that came.
        time: When, in seconds since 1970.
    """

    model: str
    policy: str
    whole: int
    reply_bytes: int
    batch: int
    plans: tuple[Point, ...]
    world: World
    weights: Weights | None
    current: int | None
    waited: bool
    cut: int
    predicted_seconds: float | None
    total_seconds: float
    time: float

    def to_json(self) -> str:
        """The decision as one line."""
        world = self.world
        document = asdict(self) | {
            "format": _FORMAT,
            "weights": self.weights._asdict() if self.weights else None,
            "world": world._asdict()
            | {
                "link": world.link._asdict() if world.link else None,
                "load": world.load._asdict() if world.load else None,
            },
        }
        return json.dumps(document)

    @classmethod
    def from_json(cls, line: str) -> Decision:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        document = json.loads(line)
        if not isinstance(document, dict) or document.pop("format", None) != _FORMAT:
            raise ValueError(f"expected a decision of format {_FORMAT}")
        try:
            world, weights = document["world"], document["weights"]
            link, load = world["link"], world["load"]
            world |= {"link": LinkReading(**link) if link else None, "load": ServerLoad(**load) if load else None}
            document |= {
                "plans": tuple(Point(**plan) for plan in document["plans"]),
                "world": World(**world),
                "weights": Weights(**weights) if weights else None,
            }
            return cls(**document)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a decision: {error!r}") from error

    def again(self) -> int:
        """The cut that the plans and the weights of this decision give, chance left out."""
        if self.weights is None or self.waited:
            return self.cut
        threshold = ADAPTIVE[self.policy].threshold
        return Plans(self.plans).choose(self.weights, self.batch, current=self.current, threshold=threshold)[0].cut

    def predicted(self, cut: int) -> float | None:
        """The latency that this decision's weights give a cut; None when it is not among the plans."""
        if self.weights is None:
            return None
        found = Plans(self.plans).seconds_of(cut, self.weights, self.batch)
        return found[1] if found else None


class DecisionLog:
    """A file of decisions, one a line. Thread-safe."""

    def __init__(self, path: Path, model: str, whole: int, reply_bytes: int) -> None:
        """Opens the file, to add to what is there.

        Raises:
            SettingsError: It cannot be written.
        """
        try:
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise SettingsError(f"decision_log: cannot write {path}: {error.strerror}") from error
        self._lock = threading.Lock()
        self._model, self._whole, self._reply_bytes = model, whole, reply_bytes

    def write(self, policy: str, choice: Choice, plans: Plans, world: World, batch: int, timings: Timings) -> None:
        """Adds a decision."""
        decision = Decision(
            self._model, policy, self._whole, self._reply_bytes, batch, plans.points, world, choice.weights,
            choice.current, choice.waited, choice.cut, choice.predicted_seconds, timings.total, time.time(),
        )  # fmt: skip
        with self._lock:
            self._file.write(decision.to_json() + "\n")

    def close(self) -> None:
        """Ends the file."""
        with self._lock:
            self._file.close()


def read_decisions(path: Path) -> Iterator[Decision]:
    """The decisions in a file.

    Raises:
        SettingsError: The file is missing, or a line is no decision; the message has its number.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield Decision.from_json(line)
                except ValueError as error:
                    raise SettingsError(f"{path}, line {number}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error


class Replay:
    """Has a policy make decisions again, each with what was known then."""

    def __init__(self, policy: str) -> None:
        """Makes a replay.

        Raises:
            SettingsError: The policy weighs nothing, or there is none of that name.
        """
        if policy not in ADAPTIVE:
            raise SettingsError(f"policy: expected one of {', '.join(ADAPTIVE)}, got {policy!r}")
        self._kind = ADAPTIVE[policy]
        self._policies: dict[tuple[str, int], LoadAware] = {}

    def choose(self, decision: Decision) -> int:
        """The cut that the policy would have taken."""
        key = (decision.model, decision.whole)
        if key not in self._policies:
            self._policies[key] = self._kind(decision.whole, decision.reply_bytes)
        alone = decision.world.load._replace(devices=1) if decision.world.load else None
        world = decision.world._replace(load=alone)
        return self._policies[key].choose(Plans(decision.plans), world, decision.batch).cut


def summary(decisions: list[Decision], policy: str | None) -> list[dict[str, Any]]:
    """How often each cut was taken, with what latency, and what a policy would have taken; a row a model and cut."""
    replay = Replay(policy) if policy else None
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for decision in decisions:
        again = replay.choose(decision) if replay else decision.again()
        for cut, key in ((decision.cut, "taken"), (again, "again")):
            row = rows.setdefault(
                (decision.model, cut), {"model": decision.model, "cut": cut, "taken": 0, "again": 0, "seconds": 0.0}
            )
            row[key] += 1
        rows[decision.model, decision.cut]["seconds"] += decision.total_seconds
    return [rows[key] for key in sorted(rows)]
