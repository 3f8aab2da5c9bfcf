"""What a server offers for one model: which tails are built there, and what they take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.planning.plan import PlanKey
from loadpart_common.text import printable
from loadpart_device.edges.plausible import are_tail_seconds, is_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from loadpart.v1 import offload_pb2
    from loadpart_common.tensors import Array


@dataclass(frozen=True)
class Offer:
    """A server's offer.

    Attributes:
        tail_seconds: Idle seconds of each cut's tail there, one item, shape (layers + 1,).
        modelled_tail_seconds: The same from the server's latency model alone.
        decode_seconds: Idle seconds that it takes to decode what crosses, one item, by the plans whose tails are built.
        codecs: Codecs that it takes, besides the raw one.
        max_batch: Largest batch that it runs.
        engine: The engine that runs them, in words.
        numerics: See `EngineSetup.numerics`.
    """

    tail_seconds: Array
    modelled_tail_seconds: Array
    decode_seconds: Mapping[PlanKey, float]
    codecs: frozenset[str]
    max_batch: int
    engine: str = ""
    numerics: str = ""

    @classmethod
    def of(cls, info: offload_pb2.ModelInfo | None, digest: str, layers: int) -> Offer | None:
        """What a server says of a model; None when it does not serve the device's file, or says what cannot be true.

        Args:
            info: What it says; None when it serves no model of that name.
            digest: SHA-256 of the device's file, in hexadecimal.
            layers: Layers of the network.
        """
        if info is None or info.digest != digest:
            return None
        tails, modelled = np.array(info.tail_seconds), np.array(info.modelled_tail_seconds)
        if not are_tail_seconds(tails, layers) or not are_tail_seconds(modelled, layers):
            return None
        ready = {
            PlanKey(plan.cut, plan.codec): plan.decode_seconds
            for plan in info.ready_plans
            if is_seconds(plan.decode_seconds)
        }
        return cls(
            tails, modelled, ready, frozenset(info.codecs), info.max_batch, printable(info.engine), info.numerics
        )
