"""The profile of one network: measured seconds of some of its heads and tails."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from loadpart_common.engines.timing import idle_seconds
from loadpart_common.latency.curves import Curves
from loadpart_common.latency.documents import reading_document, write_document
from loadpart_common.planning.plan import points
from loadpart_common.planning.winners import winning_plans

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from loadpart_common.engines.segment_cache import CachedModel, SegmentCache
    from loadpart_common.graph import Graph
    from loadpart_common.latency.model import LatencyModel

_RUNS = 5
_SPREAD_CUTS = 6


@dataclass(frozen=True)
class Profile:
    """Measured idle seconds of some segments of one network, one item of the batch, by cut."""

    heads: Mapping[int, float]
    tails: Mapping[int, float]

    def to_json(self) -> str:
        """The profile as a readable document."""
        return write_document(asdict(self))

    @classmethod
    def from_json(cls, text: str, source: str | Path) -> Profile:
        """Reads what `to_json` wrote.

        Raises:
            SettingsError: It is something else; the message names `source`.
        """
        with reading_document("profile", text, source, "profile") as document:
            heads, tails = (
                {int(cut): float(seconds) for cut, seconds in document[side].items()} for side in ("heads", "tails")
            )
            return cls(heads, tails)


def measure_profile(
    cache: SegmentCache,
    model: CachedModel,
    latency: LatencyModel,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Profile:
    """Measures heads and tails of one network: of plans that can win, and of cuts that share its seconds out evenly.

    Args:
        cache: Runs the segments; the calling thread must be the engine's own, if it needs one.
        model: The network.
        latency: What is known of the machine.
        on_progress: Called with the cuts that are done and those of all.
    """
    cuts = cuts_to_profile(model.graph, latency)
    heads: dict[int, float] = {}
    tails: dict[int, float] = {}
    for position, cut in enumerate(cuts):
        if cut > 0:
            heads[cut] = idle_seconds(cache, model, model.graph.head(cut), runs=_RUNS)
        if cut < model.graph.layer_count:
            tails[cut] = idle_seconds(cache, model, model.graph.tail(cut), runs=_RUNS)
        on_progress(position + 1, len(cuts))
    return Profile(heads, tails)


def cuts_to_profile(graph: Graph, latency: LatencyModel) -> list[int]:
    """The cuts that `measure_profile` measures."""
    curves = Curves(graph, latency)
    plans = points(graph, curves.head_seconds({}), curves.tail_seconds({}))
    return sorted({point.key.cut for point in winning_plans(plans)} | set(curves.spread_cuts(_SPREAD_CUTS)))
