"""The decision: plans are points, the state of the world is a weight vector, and the least predicted latency wins.

A plan's point is (device seconds, uplink bytes, server seconds, remote: 0 or 1), all idle figures. The weights are
(device slow-down, seconds per byte, server slow-down, round trip and queue wait). Predicted latency is their dot
product, except that a link may carry some bytes at once: only the bytes beyond these cost time.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadpart_common.planning.plan import PlanKey, Point


class Weights(NamedTuple):
    """The state of the world.

    Attributes:
        device_slow_down: Measured over predicted seconds of heads.
        seconds_per_byte: Of the uplink.
        server_slow_down: Measured over predicted seconds of tails.
        fixed_seconds: What any remote plan costs: round trip, queue wait, reply.
        free_bytes: Bytes that the uplink carries at once; only those beyond cost time.
        externality_seconds: Waiting that any remote plan causes to other devices, as far as this device counts it.
    """

    device_slow_down: float
    seconds_per_byte: float
    server_slow_down: float
    fixed_seconds: float
    free_bytes: float = 0.0
    externality_seconds: float = 0.0


class Plans:
    """The plans that may be chosen, ready for fast decisions.

    Attributes:
        points: The plans, in the order of their keys, so that the local one is the last.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self.points = tuple(sorted(points, key=lambda point: point.key))
        if not self.points or not self.points[-1].key.is_local:
            raise ValueError("expected the local plan among the plans")
        # Numbers and not an array: for a handful of plans numpy takes longer to call than this takes to run. All are
        # floats: Python multiplies two floats quicker than a float and an integer.
        self._remote = [(p.device_seconds, float(p.uplink_bytes), p.server_seconds) for p in self.points[:-1]]
        self._local_seconds = self.points[-1].device_seconds
        self._position = {point.key: position for position, point in enumerate(self.points)}

    def least(self, weights: Weights, batch: int = 1) -> tuple[float, int]:
        """The least cost of a plan in seconds, and where that plan is among `points`.

        It is asked for every server before every inference, so that it does not call `cost` for each plan.
        """
        device, link, server, fixed, free, externality = weights
        items = float(batch)
        device *= items
        server *= items
        fixed += externality
        least, best, position = math.inf, 0, 0
        for head, nbytes, tail in self._remote:
            cost = head * device + tail * server + fixed
            crossing = nbytes * items - free
            if crossing > 0.0:
                cost += crossing * link
            if cost < least:
                least, best = cost, position
            position += 1
        local = self._local_seconds * device
        return (local, position) if local < least else (least, best)

    def cost(self, position: int, weights: Weights, batch: int = 1) -> float:
        """Cost of one of `points` in seconds: its predicted latency, and what it costs others."""
        if position == len(self._remote):
            return self._local_seconds * weights.device_slow_down * batch
        head, nbytes, tail = self._remote[position]
        crossing = max(nbytes * batch - weights.free_bytes, 0.0)
        own = head * weights.device_slow_down + tail * weights.server_slow_down
        return own * batch + crossing * weights.seconds_per_byte + weights.fixed_seconds + weights.externality_seconds

    def costs(self, weights: Weights, batch: int = 1) -> list[float]:
        """Cost of every plan in seconds, in the order of `points`."""
        return [self.cost(position, weights, batch) for position in range(len(self.points))]

    def position(self, key: PlanKey) -> int | None:
        """Where a plan is among `points`; None when it is not."""
        return self._position.get(key)

    def latency(self, position: int, cost: float, weights: Weights) -> float:
        """Predicted latency of one of `points` in seconds: its cost without what it costs others."""
        return cost - weights.externality_seconds if position < len(self._remote) else cost
