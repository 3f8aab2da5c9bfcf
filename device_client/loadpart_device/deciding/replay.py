"""Makes logged decisions again, offline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loadpart_common.errors import SettingsError
from loadpart_device.deciding.policies import ADAPTIVE

if TYPE_CHECKING:
    from loadpart_common.planning.plan import PlanKey
    from loadpart_device.deciding.decision_log import Decision
    from loadpart_device.deciding.policies import LoadAware
    from loadpart_device.deciding.state import Chosen


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
        self._policies: dict[tuple[str, PlanKey], LoadAware] = {}

    def choose(self, decision: Decision) -> Chosen:
        """What the policy would have chosen, as if the device were alone."""
        policy = self._policies.setdefault((decision.model, decision.world.local), self._kind())
        edges = [
            state._replace(load=state.load._replace(devices=1) if state.load else None)
            for state in decision.world.edges
        ]
        return policy.choose(decision.world._replace(edges=tuple(edges)), decision.batch).chosen


def summary(decisions: list[Decision], policy: str | None) -> list[dict[str, Any]]:
    """How often each plan was taken, with what latency, and what a policy would have taken.

    Returns:
        A row for each model and plan: `model`, `server`, `cut`, `codec`, `taken`, `again` (how often by the policy) and
        `seconds` (of those that were taken, in all).
    """
    replay = Replay(policy) if policy else None
    rows: dict[tuple[str, Chosen], dict[str, Any]] = {}
    for decision in decisions:
        again = replay.choose(decision) if replay else decision.again()
        for chosen, key in ((decision.chosen, "taken"), (again, "again")):
            row = rows.setdefault(
                (decision.model, chosen),
                {
                    "model": decision.model, "server": chosen.edge, "cut": chosen.plan.cut, "codec": chosen.plan.codec,
                    "taken": 0, "again": 0, "seconds": 0.0,
                },
            )  # fmt: skip
            row[key] += 1
        rows[decision.model, decision.chosen]["seconds"] += decision.total_seconds
    return [rows[key] for key in sorted(rows)]
