"""What codecs cost and save on this device: as rated at first, then as timed, and then as used."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from loadpart_common.codecs.registry import CODECS
from loadpart_common.codecs.timing import encode_seconds_a_byte
from loadpart_common.latency.anchors import Anchors
from loadpart_common.planning.plan import CodecCost, PlanKey, rated_cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from loadpart_common.graph import Graph

_WEIGHT = 0.125
"""Of the latest message in the mean of bytes, which differ from picture to picture."""

_WORTH_TELLING = 0.05
"""The change of bytes, as a share, from which on plans are made anew."""

_MEMORY_SECONDS = 60.0
"""After which the bytes of a plan that is not used count as unknown again: the pictures may be others."""


class CodecCosts:
    """Bytes and encode seconds of each plan that has a codec. Thread-safe.

    Attributes:
        plans: The plans.
    """

    def __init__(self, graph: Graph, plans: Iterable[PlanKey], clock: Callable[[], float] = time.monotonic) -> None:
        """Makes the costs of plans that were never run.

        Args:
            graph: The network.
            plans: Plans with codecs, the raw ones left out.
            clock: Tells the time, in seconds.
        """
        self._clock = clock
        self._graph = graph
        self.plans = tuple(plans)
        self._rated = {plan: rated_cost(graph, plan, CODECS[plan.codec].rates) for plan in self.plans}
        self._bytes: dict[PlanKey, float] = {}
        self._told: dict[PlanKey, float] = {}  # as they were when plans were last made
        self._used_at: dict[PlanKey, float] = {}
        self._look_at = 0.0  # when to look next which of them are old
        self._encode: Anchors[PlanKey] = Anchors()
        self._lock = threading.Lock()

    def time_codecs(self) -> None:
        """Times each codec once on this machine, which also imports what it needs."""
        rates = {
            name: CODECS[name].rates._replace(encode_seconds=encode_seconds_a_byte(CODECS[name]))
            for name in {plan.codec for plan in self.plans}
        }
        rated = {plan: rated_cost(self._graph, plan, rates[plan.codec]) for plan in self.plans}
        with self._lock:
            self._rated = rated

    def costs(self, decode_seconds: Mapping[PlanKey, float]) -> dict[PlanKey, CodecCost]:
        """What plans cost now.

        Args:
            decode_seconds: Idle seconds that a server takes to decode, by the plans that it offers, to which the
                result is restricted.
        """
        with self._lock:
            self._told = dict(self._bytes)
            return {
                plan: CodecCost(
                    self._bytes.get(plan, cost.nbytes),
                    self._encode.seconds.get(plan, cost.encode_seconds),
                    decode_seconds[plan],
                )
                for plan, cost in self._rated.items()
                if plan in decode_seconds
            }

    def record(self, plan: PlanKey, nbytes: float, encode_seconds: float) -> bool:
        """Takes in a message, by item; gives whether the costs have changed enough to make plans anew."""
        if plan not in self._rated:
            return False
        with self._lock:
            before = self._bytes.get(plan)
            after = self._bytes[plan] = nbytes if before is None else before + _WEIGHT * (nbytes - before)
            self._used_at[plan] = self._clock()
            told = self._told.get(plan, self._rated[plan].nbytes)
            return self._encode.record(plan, encode_seconds) or abs(after / told - 1) > _WORTH_TELLING

    def forget_old(self) -> bool:
        """Forgets the bytes of plans that were not used lately; gives whether there were any. Quick."""
        now = self._clock()
        if now < self._look_at:
            return False
        self._look_at = now + _MEMORY_SECONDS / 4
        with self._lock:
            old = [plan for plan, at in self._used_at.items() if now - at > _MEMORY_SECONDS]
            for plan in old:
                del self._used_at[plan], self._bytes[plan]
            return bool(old)
