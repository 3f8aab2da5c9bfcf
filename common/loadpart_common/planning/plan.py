"""Plans: where a network is cut and how what crosses is encoded, as points whose coordinates are idle costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from loadpart_common.codecs.raw import RawCodec
from loadpart_common.codecs.registry import CODECS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from loadpart_common.codecs.base import Rates
    from loadpart_common.graph import Graph
    from loadpart_common.tensors import Array

DEFAULT_CODEC = RawCodec.name


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
        if self.is_local:
            return "local"
        return f"cut {self.cut}" if self.codec == DEFAULT_CODEC else f"cut {self.cut}, {self.codec}"


@dataclass(frozen=True, slots=True)
class Point:
    """A plan as a point.

    Attributes:
        key: What the plan is known by.
        device_seconds: Idle seconds of the head and of encoding what crosses, one item.
        uplink_bytes: Bytes that cross, one item.
        server_seconds: Idle seconds of decoding and of the tail, one item.
    """

    key: PlanKey
    device_seconds: float
    uplink_bytes: int
    server_seconds: float


class CodecCost(NamedTuple):
    """What a codec costs and saves at one cut, for one item.

    Attributes:
        nbytes: Bytes that cross.
        encode_seconds: Idle seconds to write them on the device.
        decode_seconds: Idle seconds to read them on the server.
    """

    nbytes: float
    encode_seconds: float
    decode_seconds: float


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


def points(
    graph: Graph, head_seconds: Array, tail_seconds: Array, costs: Mapping[PlanKey, CodecCost] | None = None
) -> tuple[Point, ...]:
    """The points of every valid cut, raw and with each codec whose costs are known; the local plan last.

    Args:
        graph: The network.
        head_seconds: Idle seconds of the head of each cut on the device, shape (layers + 1,).
        tail_seconds: Idle seconds of the tail of each cut on the server, shape (layers + 1,).
        costs: What codecs cost at cuts.
    """
    all_costs = {PlanKey(cut.index, DEFAULT_CODEC): CodecCost(cut.nbytes(), 0.0, 0.0) for cut in graph.cuts[:-1]}
    all_costs |= costs or {}
    remote = [
        Point(
            key,
            float(head_seconds[key.cut]) + cost.encode_seconds,
            round(cost.nbytes),
            float(tail_seconds[key.cut]) + cost.decode_seconds,
        )
        for key, cost in sorted(all_costs.items())
    ]
    return (*remote, Point(local_plan(graph), float(head_seconds[-1]), 0, 0.0))


def coded_plans(graph: Graph, names: Iterable[str]) -> list[PlanKey]:
    """The plans in which codecs have something to do: each with each cut where it takes a tensor that crosses.

    Args:
        graph: The network.
        names: Names of codecs.
    """
    codecs = [CODECS[name] for name in names if name != DEFAULT_CODEC]
    return [
        PlanKey(cut.index, codec.name)
        for cut in graph.cuts[:-1]
        for codec in codecs
        if any(codec.takes(spec) for spec in cut.specs)
    ]


def rated_cost(graph: Graph, plan: PlanKey, rates: Rates) -> CodecCost:
    """What a codec costs at a cut by rates, before it is used there; tensors that it does not take go raw."""
    codec, cut = CODECS[plan.codec], graph.cut(plan.cut)
    taken = sum(spec.nbytes(1) for spec in cut.specs if codec.takes(spec))
    raw = cut.nbytes() - taken
    return CodecCost(raw + taken * rates.share, taken * rates.encode_seconds, taken * rates.decode_seconds)


def undominated_codecs(plans: Iterable[Point]) -> list[Point]:
    """Plans without those that another one with the same cut is as good as in everything; raw ones always stay.

    What one knows beforehand can lose costs no time in decisions.
    """
    by_cut: dict[int, list[Point]] = {}
    for point in plans:
        by_cut.setdefault(point.key.cut, []).append(point)
    return [
        point
        for same in by_cut.values()
        for point in same
        if point.key.codec == DEFAULT_CODEC or not any(_is_better(other, point) for other in same)
    ]


def _is_better(one: Point, other: Point) -> bool:
    figures = [(p.device_seconds, p.uplink_bytes, p.server_seconds) for p in (one, other)]
    return figures[0] != figures[1] and all(a <= b for a, b in zip(*figures, strict=True))


def reply_bytes(graph: Graph) -> int:
    """Bytes of an answer, one item."""
    return sum(spec.nbytes(1) for spec in graph.output_specs)
