"""A model that the daemon serves, and the check of what a device sends for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.codecs.registry import CODECS
from loadpart_common.errors import CutError, InputError, ModelMismatchError
from loadpart_common.latency.curves import Curves
from loadpart_common.planning.plan import DEFAULT_CODEC, PlanKey, coded_plans, points, rated_cost
from loadpart_common.planning.winners import winning_keys
from loadpart_common.tensors import check_arrays
from loadpart_common.wire import framing
from loadpart_edge.scheduling.hosts import MOST_KEPT
from loadpart_edge.tail_times import TailTimes
from loadpart_edge.workers.base import Preparation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.graph import Cut
    from loadpart_common.latency.model import LatencyModel
    from loadpart_common.latency.profile import Profile
    from loadpart_common.planning.plan import CodecCost
    from loadpart_common.store.model_store import StoredModel
    from loadpart_common.tensors import Array
    from loadpart_common.wire.framing import EncodedTensor
    from loadpart_edge.workers.base import Outcome

_CODEC_SPARE = 1.125
_TENSORS_SPARE_BYTES = 64 << 10
"""What encoded tensors may take beyond their elements: types, shapes, what a codec adds that cannot compress them."""


class ServedModel:
    """A model that is served.

    Attributes:
        name: Its name.
        stored: Its file and manifest.
        graph: Its layers.
        setup: The engine that runs its tails, and how.
        codecs: Names of the codecs that devices may use.
        candidates: Cuts whose tails are built ahead: those that can win, with one codec or another.
        tail_seconds: Idle seconds of each cut's tail, one item, shape (layers + 1,); the mean of the hosts, each by
            its share of the jobs.
        modelled_tail_seconds: The same from the latency model alone.
        ready: Cuts whose tails are built.
        max_batch: The largest batch that is run: a larger one would take more memory than a worker may.
    """

    def __init__(
        self,
        name: str,
        stored: StoredModel,
        setup: EngineSetup,
        latency: LatencyModel,
        profile: Profile,
        on_change: Callable[[], None],
        *,
        codecs: Sequence[str],
        memory_limit_bytes: int,
    ) -> None:
        """Makes one.

        Args:
            name: Its name.
            stored: Its file and manifest.
            setup: The engine that runs its tails, and how.
            latency: The latency model of this machine and that engine.
            profile: What was measured of the model on this machine.
            on_change: Called when `tail_seconds` or `ready_plans` have changed.
            codecs: Names of the codecs that devices may use.
            memory_limit_bytes: Bound on the memory of a worker's compiled tails, weights left out.
        """
        self._on_change = on_change
        self.name = name
        self.stored = stored
        self.graph = stored.graph
        self.setup = setup
        self._curves = Curves(self.graph, latency)
        self._profile = profile
        self._by_host: dict[str, TailTimes] = {}
        self._shares: dict[str, float] = {}
        self.modelled_tail_seconds = self._curves.tail_seconds({})
        self.tail_seconds: Array = self._curves.tail_seconds(self._profile.tails)
        self.codecs = tuple(codecs)
        costs = {
            plan: rated_cost(self.graph, plan, CODECS[plan.codec].rates) for plan in coded_plans(self.graph, codecs)
        }
        self._rated_decoding = {plan: cost.decode_seconds for plan, cost in costs.items()}
        self.candidates = self._winning_cuts(costs)
        self.ready: set[int] = set()
        one = sum(spec.nbytes(1) for layer in self.graph.layers for spec in layer.outputs)
        self.max_batch = max(self.graph.smallest_batch, memory_limit_bytes // max(one, 1))

    @property
    def ready_plans(self) -> dict[PlanKey, float]:
        """Plans whose tails are built, with each codec that has something to do; and the idle seconds of decoding."""
        raw = {PlanKey(cut, DEFAULT_CODEC): 0.0 for cut in self.ready}
        coded = {plan: self._decode_seconds(plan) for plan in self._rated_decoding if plan.cut in self.ready}
        return dict(sorted((raw | coded).items()))

    def preparation(self, cut: int) -> Preparation:
        """How a worker is told to build and time the tail of a cut."""
        return Preparation(self.stored.manifest.digest, cut, batch=self.graph.smallest_batch)

    def predict(self, plan: PlanKey, batch: int, host: str) -> float:
        """Idle seconds of decoding and running a tail on a host, for a whole batch; the mean for one not known."""
        times = self._by_host.get(host)
        if times is None:
            decoding = self._decode_seconds(plan) if plan in self._rated_decoding else 0.0
            return (decoding + float(self.tail_seconds[plan.cut])) * batch
        return (times.decode_seconds(plan) + float(times.seconds[plan.cut])) * batch

    def prepared(self, host: str, cut: int, seconds: float) -> None:
        """Takes in the idle time of a tail that has been built on a host, one item."""
        self._times(host).measure(cut, seconds)
        self.ready.add(cut)
        self._average()

    def weigh(self, shares: Mapping[str, float]) -> None:
        """Takes in which hosts have workers, and the share of the jobs that each gets."""
        self._shares = dict(shares)
        if len(self._by_host) > MOST_KEPT:
            self._by_host = {host: times for host, times in self._by_host.items() if host in shares}
        if self._by_host:
            self._average()

    def observe(self, host: str, plan: PlanKey, outcome: Outcome, batch: int) -> None:
        """Takes in what a tail took that ran for a device on a host."""
        if self._times(host).observe(plan, outcome.decode_seconds / batch, outcome.tail_seconds / batch):
            self._average()

    def most_bytes(self, digest: str, plan: PlanKey) -> int:
        """The most that the encoded tensors of a request may take.

        Raises:
            ModelMismatchError: The device holds another file.
            CutError: There is no such cut, or it leaves nothing to the server.
        """
        return int(self._cut(digest, plan).nbytes(self.max_batch) * _CODEC_SPARE) + _TENSORS_SPARE_BYTES

    def check(self, digest: str, plan: PlanKey, tensors: Sequence[EncodedTensor], reply_codec: str) -> int:
        """The batch size of a request; nothing is decoded.

        Raises:
            ModelMismatchError: The device holds another file.
            CutError: There is no such cut, or it leaves nothing to the server.
            InputError: A codec is unknown or not allowed, the tensors are not those that are live at the cut, or there
                are too many items.
        """
        cut = self._cut(digest, plan)
        for name in (plan.codec, reply_codec):
            if name not in self.codecs:
                raise InputError(f"unknown codec {name!r}: expected one of {', '.join(self.codecs)}")
        framing.check(tensors, CODECS[plan.codec])
        try:
            batch = check_arrays(tensors, cut.specs)
        except InputError as error:
            raise InputError(f"model {self.name!r}, cut {plan.cut}: {error}") from error
        if batch > self.max_batch:
            raise InputError(f"model {self.name!r}: expected a batch of at most {self.max_batch}, got {batch}")
        return batch

    def _cut(self, digest: str, plan: PlanKey) -> Cut:
        if digest != self.stored.manifest.digest:
            raise ModelMismatchError(
                f"model {self.name!r}: expected digest {self.stored.manifest.digest[:12]}..., got {digest[:12]!r}...; "
                "fetch the model again"
            )
        last = self.graph.layer_count - 1
        if plan.cut > last:
            raise CutError(f"cut {plan.cut} is out of range: expected 0 to {last} for model {self.name!r}")
        return self.graph.cut(plan.cut)

    def _winning_cuts(self, costs: Mapping[PlanKey, CodecCost]) -> tuple[int, ...]:
        """Cuts of plans that can win, with one codec or another.

        A device is taken for a slower machine of this kind: scaling a coordinate does not change which plans can win.
        """
        heads = self._curves.head_seconds(self._profile.heads)
        plans = winning_keys(points(self.graph, heads, self.tail_seconds, costs))
        return tuple(sorted({plan.cut for plan in plans if not plan.is_local}))

    def _decode_seconds(self, plan: PlanKey) -> float:
        """Idle seconds of decoding what crosses, one item; the mean of the hosts."""
        if not self._by_host:
            return self._rated_decoding[plan]
        decoding = [times.decode_seconds(plan) for times in self._by_host.values()]
        return float(np.average(decoding, weights=self._weights()))

    def _times(self, host: str) -> TailTimes:
        times = self._by_host.get(host)
        if times is None:
            times = self._by_host[host] = TailTimes(self._curves, self._profile, self._rated_decoding)
        return times

    def _weights(self) -> list[float]:
        """What each host counts; all the same where none of them has a worker."""
        weights = [self._shares.get(host, 0.0) for host in self._by_host]
        return weights if any(weights) else [1.0] * len(weights)

    def _average(self) -> None:
        tails = [times.seconds for times in self._by_host.values()]
        self.tail_seconds = np.average(tails, axis=0, weights=self._weights())
        self._on_change()
