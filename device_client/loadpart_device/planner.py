"""The plans that can be run now: those whose segments both the device and a server have built."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.planning.plan import (
    coded_plans,
    local_plan,
    points,
    reply_bytes,
    undominated_codecs,
)
from loadpart_common.planning.plans import Plans
from loadpart_common.planning.winners import winning_keys, worth_building
from loadpart_common.text import printable
from loadpart_device.codec_costs import CodecCosts
from loadpart_device.deciding.state import EdgeState, World
from loadpart_device.edges.offer import Offer

if TYPE_CHECKING:
    from loadpart.v1 import offload_pb2
    from loadpart_common.graph import Graph
    from loadpart_common.planning.plan import PlanKey, Point
    from loadpart_device.allowed_codecs import AllowedCodecs
    from loadpart_device.edges.edge import Edge
    from loadpart_device.edges.fleet import Fleet
    from loadpart_device.local import LocalRuntime

WORTH_BUILDING = 0.02
"""Share of its latency that a head must be able to save an inference: noise moves predictions by more."""

_SHOWN_LETTERS = 12  # of a digest

log = logging.getLogger(__name__)


class Planner:
    """Keeps the plans of every server current, and has the heads of those built that can win."""

    def __init__(
        self,
        model: str,
        digest: str,
        local: LocalRuntime,
        fleet: Fleet,
        allowed: AllowedCodecs,
        *,
        uses_latency_model_only: bool,
        exact: bool,
    ) -> None:
        """Makes a planner.

        Args:
            model: Name of the model.
            digest: SHA-256 of the device's file, in hexadecimal.
            local: Builds and runs heads.
            fleet: The servers.
            allowed: The codecs that the application allows.
            uses_latency_model_only: See `Policy.uses_latency_model_only`.
            exact: Whether to leave servers alone whose answers have other bits than this device's.
        """
        self._model = model
        self._digest = digest
        self._local = local
        self._fleet = fleet
        self._graph: Graph = local.graph
        self._uses_latency_model_only = uses_latency_model_only
        self._exact = exact
        self._numerics = local.setup.numerics
        self._local_plan = local_plan(self._graph)
        self._reply_bytes = reply_bytes(self._graph)
        plans = coded_plans(self._graph, allowed.names)
        self._codecs = CodecCosts(self._graph, [plan for plan in plans if allowed.allows(plan)])
        self._plans: dict[str, Plans] = {}  # by edge
        self.update()
        local.when_idle(self._time_codecs, is_awaited=True)

    def use_latency_model_only(self, value: bool) -> None:
        """Sets whether plans are predicted from the latency model alone."""
        self._uses_latency_model_only = value
        self.update()

    def plans(self, edge: Edge | None) -> Plans:
        """The plans that can be run with a server, or with none."""
        plans = self._plans.get(edge.name) if edge is not None else None
        return plans or Plans(self._runnable(edge))  # of a server that has come or gone just now

    def winning(self, edge: Edge | None) -> list[PlanKey]:
        """The plans that can win with a server, with one of the allowed codecs or another."""
        return sorted(winning_keys(self._runnable(edge)))

    def world(self, batch: int) -> World:
        """What is known now, for a batch of so many items."""
        if self._codecs.forget_old():
            self.update()
        edges = tuple(
            [
                EdgeState(edge.name, self._plans_for(edge, batch), edge.link.reading, edge.load, edge.unavailable())
                for edge in self._fleet
            ]
        )
        return World(edges, self._local.slow_down, self._local_plan, self._reply_bytes)

    def models_changed(self, edge: Edge, models: dict[str, offload_pb2.ModelInfo]) -> None:
        """Takes in what a server says of its models, and has heads built for its plans."""
        info = models.get(self._model)
        edge.offer = offer = Offer.of(info, self._digest, self._graph.layer_count)
        edge.is_foreign, edge.why_unwanted = info is not None and info.digest != self._digest, None
        if info is None:
            edge.why_unwanted = f"the server does not serve model {self._model!r}"
        elif edge.is_foreign:
            edge.why_unwanted = (
                f"the server holds another file as model {self._model!r}: "
                f"{printable(info.digest[:_SHOWN_LETTERS])}..., here {self._digest[:_SHOWN_LETTERS]}..."
            )
        elif offer is None:
            edge.why_unwanted = "what the server says of the model cannot be true"
        elif self._exact and not self.is_exact(edge):
            edge.why_unwanted = f"its engine gives other bits: {offer.engine}, here {self._local.setup}"
        if edge.why_unwanted is not None:
            log.warning("%s is left alone: %s", edge.name, edge.why_unwanted)
        self.update()
        if offer is not None:
            offered = [point for point in self._points(offer) if self._is_offered(point, offer)]
            built = [point for point in offered if point.key.is_local or self._local.is_ready(point.key.cut)]
            self._local.build(worth_building(offered, built, WORTH_BUILDING))

    def encoded(self, plan: PlanKey, nbytes: int, encode_seconds: float, batch: int) -> None:
        """Takes in what a request took to encode, and how many bytes it became."""
        if self._codecs.record(plan, nbytes / batch, encode_seconds / batch / self._local.slow_down):
            self._local.when_idle(self.update)

    def is_exact(self, edge: Edge) -> bool:
        """Whether a server's answers have the bits that this device would compute itself."""
        return edge.offer is not None and edge.offer.numerics == self._numerics

    def update(self) -> None:
        """Makes the plans anew: those whose head is built here and whose tail is built there, and the local one."""
        self._plans = {edge.name: Plans(undominated_codecs(self._runnable(edge))) for edge in self._fleet}

    def _runnable(self, edge: Edge | None) -> list[Point]:
        """The points of the plans that can be run with a server, or with none."""
        if edge is None:
            return [point for point in self._points(None) if point.key.is_local]
        return [
            point
            for point in self._points(edge.offer)
            if point.key.is_local
            or (
                self._is_offered(point, edge.offer)
                and self._local.is_ready(point.key.cut)
                and edge.why_too_large(point.uplink_bytes, 1) is None
            )
        ]

    def _time_codecs(self) -> None:
        self._codecs.time_codecs()
        self.update()

    def _plans_for(self, edge: Edge, batch: int) -> Plans:
        """The plans that a server takes for a batch: a large batch makes large messages."""
        plans = self.plans(edge)
        if batch == 1:
            return plans
        fitting = [
            point
            for point in plans.points
            if point.key.is_local or edge.why_too_large(point.uplink_bytes * batch, batch) is None
        ]
        return plans if len(fitting) == len(plans.points) else Plans(fitting)

    @staticmethod
    def _is_offered(point: Point, offer: Offer | None) -> bool:
        return point.key.is_local or (offer is not None and point.key in offer.decode_seconds)

    def _points(self, offer: Offer | None) -> tuple[Point, ...]:
        """The points of all plans; tails cost nothing as long as the server is unknown."""
        alone = self._uses_latency_model_only
        heads = self._local.modelled_head_seconds if alone else self._local.head_seconds
        if offer is None:
            return points(self._graph, heads, np.zeros(self._graph.layer_count + 1))
        tails = offer.modelled_tail_seconds if alone else offer.tail_seconds
        return points(self._graph, heads, tails, self._codecs.costs(offer.decode_seconds))
