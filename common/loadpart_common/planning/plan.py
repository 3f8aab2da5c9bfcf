"""Plans: where a network is cut and how what crosses is encoded, as points whose coordinates are idle costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from loadpart_common.graph import Graph
    from loadpart_common.tensors import Array

DEFAULT_CODEC = "raw"


class PlanKey(NamedTuple):
    """What a plan is known by.

    Attributes:
        cut: Layers on the device.
        codec: Codec of the tensors that cross; empty when nothing crosses, because the device does everything.
    """

    cut: int
    codec: str = ""

    @property
    def is_local(self) -> bool:
        """Whether no server takes part."""
        return not self.codec

    def __str__(self) -> str:
        return "local" if self.is_local else f"cut {self.cut}"


@dataclass(frozen=True, slots=True)
class Point:
    """A plan as a point.

    Attributes:
        key: What the plan is known by.
        device_seconds: Idle seconds of the head, one item.
        uplink_bytes: Bytes that cross, one item.
        server_seconds: Idle seconds of the tail, one item.
    """

    key: PlanKey
    device_seconds: float
    uplink_bytes: int
    server_seconds: float


def local_plan(graph: Graph) -> PlanKey:
    """The plan that leaves everything on the device."""
    return PlanKey(graph.layer_count)


def plan_at(graph: Graph, cut: int, codec: str = DEFAULT_CODEC) -> PlanKey:
    """The plan with a cut: the local one for the last cut, which leaves nothing to a server.

    Raises:
        CutError: The network cannot be cut there.
    """
    index = graph.cut(cut).index
    return local_plan(graph) if index == graph.layer_count else PlanKey(index, codec)


def points(graph: Graph, head_seconds: Array, tail_seconds: Array) -> tuple[Point, ...]:
    """The point of every valid cut, the local plan last.

    Args:
        graph: The network.
        head_seconds: Idle seconds of the head of each cut on the device, shape (layers + 1,).
        tail_seconds: Idle seconds of the tail of each cut on the server, shape (layers + 1,).
    """
    remote = [
        Point(
            PlanKey(cut.index, DEFAULT_CODEC),
            float(head_seconds[cut.index]),
            cut.nbytes(),
            float(tail_seconds[cut.index]),
        )
        for cut in graph.cuts[:-1]
    ]
    return (*remote, Point(local_plan(graph), float(head_seconds[-1]), 0, 0.0))


def reply_bytes(graph: Graph) -> int:
    """Bytes of an answer, one item."""
    return sum(spec.nbytes(1) for spec in graph.output_specs)
