"""How long the tails of one model take on one host, and decoding what they start from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.latency.anchors import Anchors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadpart_common.latency.curves import Curves
    from loadpart_common.latency.profile import Profile
    from loadpart_common.planning.plan import PlanKey
    from loadpart_common.tensors import Array


class TailTimes:
    """Idle seconds of every tail, from the latency model, the profile, and the tails that have run.

    Attributes:
        seconds: Idle seconds of each cut's tail, one item, shape (layers + 1,).
    """

    def __init__(self, curves: Curves, profile: Profile, rated: Mapping[PlanKey, float]) -> None:
        """Makes the times of a host where no tail has run yet.

        Args:
            curves: What the latency model says of the network.
            profile: What was measured of it on the daemon's machine.
            rated: Seconds of decoding by the codecs' rates, one item, by plan.
        """
        self._curves = curves
        self._rated = rated
        self._tails: Anchors[int] = Anchors()
        self._decoding: Anchors[PlanKey] = Anchors()
        for cut, seconds in profile.tails.items():
            self._tails.measure(cut, seconds)
        self._redraw()

    def decode_seconds(self, plan: PlanKey) -> float:
        """Idle seconds of decoding what crosses, one item."""
        return self._decoding.seconds.get(plan) or self._rated.get(plan, 0.0)

    def measure(self, cut: int, seconds: float) -> None:
        """Takes in the idle time of a tail that has been built."""
        self._tails.measure(cut, seconds)
        self._redraw()

    def observe(self, plan: PlanKey, decode_seconds: float, tail_seconds: float) -> bool:
        """Takes in what ran for a device, one item; gives whether the times have changed.

        Decoding has no idle measurement to go by, so the tail that ran after it tells how slow the host was.
        """
        slow_down = max(tail_seconds / max(float(self.seconds[plan.cut]), 1e-9), 1.0)
        decoding_changed = plan in self._rated and self._decoding.record(plan, decode_seconds / slow_down)
        tails_changed = self._tails.observe(plan.cut, tail_seconds)
        if tails_changed:
            self._redraw()
        return decoding_changed or tails_changed

    def _redraw(self) -> None:
        self.seconds: Array = self._curves.tail_seconds(self._tails.seconds)
