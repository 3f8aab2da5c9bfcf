"""How long the tails of one model take on one host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadpart_common.latency.anchors import Anchors
from loadpart_common.planning.plan import DEFAULT_CODEC, PlanKey

if TYPE_CHECKING:
    from loadpart_common.latency.curves import Curves
    from loadpart_common.latency.profile import Profile
    from loadpart_common.tensors import Array


class TailTimes:
    """Idle seconds of every tail, from the latency model, the profile, and the tails that have run.

    Attributes:
        seconds: Idle seconds of each cut's tail, one item, shape (layers + 1,).
    """

    def __init__(self, curves: Curves, profile: Profile) -> None:
        """Makes the times of a host where no tail has run yet.

        Args:
            curves: What the latency model says of the network.
            profile: What was measured of it on the daemon's machine.
        """
        self._curves = curves
        self._anchors = Anchors()
        for cut, seconds in profile.tails.items():
            self._anchors.measure(PlanKey(cut, DEFAULT_CODEC), seconds)
        self._redraw()

    def measure(self, plan: PlanKey, seconds: float) -> None:
        """Takes in the idle time of a tail that has been built."""
        self._anchors.measure(plan, seconds)
        self._redraw()

    def observe(self, plan: PlanKey, seconds: float) -> bool:
        """Takes in the time of a tail that ran for a device, one item; gives whether `seconds` has changed."""
        changed = self._anchors.observe(plan, seconds)
        if changed:
            self._redraw()
        return changed

    def _redraw(self) -> None:
        self.seconds: Array = self._curves.tail_seconds(self._anchors.by_cut())
