"""A model that the daemon serves, and the check of what a device sends for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.codecs.registry import codec_named
from loadpart_common.errors import CutError, InputError, ModelMismatchError
from loadpart_common.latency.curves import Curves
from loadpart_common.planning.plan import PlanKey, points
from loadpart_common.planning.winners import winning_plans
from loadpart_common.tensors import check_arrays
from loadpart_common.wire import framing
from loadpart_edge.tail_times import TailTimes
from loadpart_edge.workers.base import Preparation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.graph import Cut
    from loadpart_common.latency.model import LatencyModel
    from loadpart_common.latency.profile import Profile
    from loadpart_common.store.model_store import StoredModel
    from loadpart_common.tensors import Array
    from loadpart_common.wire.framing import EncodedTensor

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
        candidates: Plans whose tails are built ahead: those that can win.
        tail_seconds: Idle seconds of each cut's tail, one item, shape (layers + 1,); the mean of the hosts.
        modelled_tail_seconds: The same from the latency model alone.
        ready_plans: Plans whose tails are built.
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
        self.modelled_tail_seconds = self._curves.tail_seconds({})
        self.tail_seconds: Array = self._curves.tail_seconds(self._profile.tails)
        # A device is taken for a slower machine of this kind: scaling a coordinate does not change which plans can win.
        plans = points(self.graph, self._curves.head_seconds(self._profile.heads), self.tail_seconds)
        self.candidates = tuple(point.key for point in winning_plans(plans) if not point.key.is_local)
        self.ready_plans: set[PlanKey] = set()
        one = sum(spec.nbytes(1) for layer in self.graph.layers for spec in layer.outputs)
        self.max_batch = max(self.graph.smallest_batch, memory_limit_bytes // max(one, 1))

    def preparation(self, plan: PlanKey) -> Preparation:
        """How a worker is told to build and time the tail of a plan."""
        return Preparation(self.stored.manifest.digest, plan, batch=self.graph.smallest_batch)

    def predict(self, plan: PlanKey, batch: int, host: str) -> float:
        """Idle seconds of a tail on a host, for a whole batch."""
        times = self._by_host.get(host)
        return float((self.tail_seconds if times is None else times.seconds)[plan.cut]) * batch

    def prepared(self, host: str, plan: PlanKey, seconds: float) -> None:
        """Takes in the idle time of a tail that has been built on a host, one item."""
        self._times(host).measure(plan, seconds)
        self.ready_plans.add(plan)
        self._average()

    def observe(self, host: str, plan: PlanKey, seconds: float) -> None:
        """Takes in the time of a tail that ran for a device on a host, one item."""
        if self._times(host).observe(plan, seconds):
            self._average()

    def most_bytes(self, digest: str, plan: PlanKey) -> int:
        """The most that the encoded tensors of a request may take.

        Raises:
            ModelMismatchError: The device holds another file.
            CutError: There is no such cut, or it leaves nothing to the server.
        """
        return int(self._cut(digest, plan).nbytes(self.max_batch) * _CODEC_SPARE) + _TENSORS_SPARE_BYTES

    def check(self, digest: str, plan: PlanKey, tensors: Sequence[EncodedTensor]) -> tuple[Cut, int]:
        """The cut that a request is about, and its batch size; nothing is decoded.

        Raises:
            ModelMismatchError: The device holds another file.
            CutError: There is no such cut, or it leaves nothing to the server.
            InputError: The codec is unknown, the tensors are not those that are live at the cut, or too many items.
        """
        cut = self._cut(digest, plan)
        framing.check(tensors, codec_named(plan.codec))
        try:
            batch = check_arrays(tensors, cut.specs)
        except InputError as error:
            raise InputError(f"model {self.name!r}, cut {plan.cut}: {error}") from error
        if batch > self.max_batch:
            raise InputError(f"model {self.name!r}: expected a batch of at most {self.max_batch}, got {batch}")
        return cut, batch

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

    def _times(self, host: str) -> TailTimes:
        times = self._by_host.get(host)
        if times is None:
            times = self._by_host[host] = TailTimes(self._curves, self._profile)
        return times

    def _average(self) -> None:
        self.tail_seconds = np.mean([times.seconds for times in self._by_host.values()], axis=0)
        self._on_change()
