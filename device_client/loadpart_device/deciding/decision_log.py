"""Decisions as JSON lines: written while the application runs, read and made again offline."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loadpart_common.errors import SettingsError
from loadpart_common.planning.plan import PlanKey, Point
from loadpart_common.planning.plans import Plans
from loadpart_device.deciding.policies import ADAPTIVE
from loadpart_device.deciding.state import Chosen, EdgeState, World
from loadpart_device.edges.link import LinkReading
from loadpart_device.edges.load import ServerLoad

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from loadpart_device.deciding.state import Choice

_FORMAT = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision: what was known, what was chosen, and what came of it.

    Attributes:
        model: Name of the model.
        policy: Name of the policy.
        batch: Items of the batch.
        world: What was known, the plans that there were to choose from among it.
        previous: What was chosen before; None for the first decision.
        kept_by_chance: Whether that was kept by chance, for the sake of other devices.
        chosen: What was chosen.
        predicted_seconds: The latency that was expected; None when unknown.
        total_seconds: The latency that came.
        time: When, in seconds since 1970.
    """

    model: str
    policy: str
    batch: int
    world: World
    previous: Chosen | None
    kept_by_chance: bool
    chosen: Chosen
    predicted_seconds: float | None
    total_seconds: float
    time: float

    def to_json(self) -> str:
        """The decision as one line."""
        return json.dumps(
            {
                "format": _FORMAT,
                "model": self.model,
                "policy": self.policy,
                "batch": self.batch,
                "world": _world_to_json(self.world),
                "previous": self.previous,
                "kept_by_chance": self.kept_by_chance,
                "chosen": self.chosen,
                "predicted_seconds": self.predicted_seconds,
                "total_seconds": self.total_seconds,
                "time": self.time,
            }
        )

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
            previous = document["previous"]
            document |= {
                "world": _world_from_json(document["world"]),
                "previous": None if previous is None else _chosen(previous),
                "chosen": _chosen(document["chosen"]),
            }
            return cls(**document)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a decision: {error!r}") from error

    def again(self) -> Chosen:
        """What the policy chooses from the same knowledge, chance left out."""
        if self.policy not in ADAPTIVE or self.kept_by_chance:
            return self.chosen
        return ADAPTIVE[self.policy]().again(self.world, self.batch, self.previous)


class DecisionLog:
    """A file of decisions, one a line. Thread-safe."""

    def __init__(self, path: Path, model: str) -> None:
        """Opens the file, to add to what is there.

        Args:
            path: The file.
            model: Name of the model that the decisions are about.

        Raises:
            SettingsError: It cannot be written.
        """
        try:
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise SettingsError(f"decision_log: cannot write {path}: {error.strerror}") from error
        self._lock = threading.Lock()
        self._model = model

    def write(self, policy: str, choice: Choice, world: World, batch: int, total_seconds: float) -> None:
        """Adds a decision, unless the log is closed; it is when the file cannot be written any more."""
        decision = Decision(
            self._model, policy, batch, world, choice.previous, choice.kept_by_chance, choice.chosen,
            choice.predicted_seconds, total_seconds, time.time(),
        )  # fmt: skip
        with self._lock:
            if self._file.closed:  # by the client, on another thread
                return
            try:
                self._file.write(decision.to_json() + "\n")
            except OSError as error:  # no reason to give an inference up
                log.warning("decisions are no longer logged: %s", error)
                self._close()

    def close(self) -> None:
        """Ends the file."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # the disk is full; it is closed all the same
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


def _world_to_json(world: World) -> dict[str, Any]:
    return {
        "device_slow_down": world.device_slow_down,
        "local": world.local,
        "reply_bytes": world.reply_bytes,
        "edges": [
            {
                "edge": state.edge,
                "plans": [[p.key, p.device_seconds, p.uplink_bytes, p.server_seconds] for p in state.plans.points],
                "link": state.link._asdict() if state.link else None,
                "load": state.load._asdict() if state.load else None,
                "unavailable": state.unavailable,
            }
            for state in world.edges
        ],
    }


def _world_from_json(document: dict[str, Any]) -> World:
    edges = [
        EdgeState(
            edge["edge"],
            Plans([Point(PlanKey(*key), *figures) for key, *figures in edge["plans"]]),
            LinkReading(**edge["link"]) if edge["link"] else None,
            ServerLoad(**edge["load"]) if edge["load"] else None,
            edge["unavailable"],
        )
        for edge in document["edges"]
    ]
    local = PlanKey(*document["local"])
    return World(tuple(edges), document["device_slow_down"], local, document["reply_bytes"])


def _chosen(document: list[Any]) -> Chosen:
    edge, plan = document
    return Chosen(edge, PlanKey(*plan))
