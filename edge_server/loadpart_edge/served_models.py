"""The models that the daemon serves, and the check of what a device sends for one."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from loadpart_common.errors import (
    CutError,
    InputError,
    ModelError,
    ModelMismatchError,
    ModelNotFoundError,
    OffloadError,
)
from loadpart_common.latency.measurements import Measurements
from loadpart_common.latency.model import Anchors, Curves
from loadpart_common.planning.plans import lower_hull, points
from loadpart_common.tensors import check_arrays
from loadpart_edge.workers.local.messages import Prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadpart_common.graph import Cut
    from loadpart_common.latency.model import LatencyModel, Profile
    from loadpart_common.store.model_store import ModelStore, StoredModel
    from loadpart_common.tensors import Array
    from loadpart_edge.settings import Settings

_CANARY_SECONDS = 0.02
"""Long enough for another process's time slices (3 ms and more) to fall into it, short enough to be in nobody's way."""

log = logging.getLogger(__name__)


class ServedModel:
    """A model that is served.

    Attributes:
        name: Its name.
        stored: Its file and manifest.
        path: Its file.
        candidates: Cuts whose tails are built ahead: the plans that can win.
        tail_seconds: Idle seconds of each cut's tail on this machine, one item, shape (layers + 1,).
        regressed_tail_seconds: The same from the latency model alone.
        ready_cuts: Cuts whose tails are built.
    """

    def __init__(
        self, name: str, stored: StoredModel, latency: LatencyModel, profile: Profile, on_change: Callable[[], None]
    ) -> None:
        """Makes one; `on_change` is called when `tail_seconds` or `ready_cuts` have changed."""
        self._on_change = on_change
        self.name = name
        self.stored = stored
        self.path = str(stored.path)
        self.graph = stored.manifest.graph
        self._curves = Curves(self.graph, latency)
        self.regressed_tail_seconds = self._curves.tail_seconds({})
        self._anchors = Anchors()
        for cut, seconds in profile.tails.items():
            self._anchors.measure(cut, seconds)
        self.tail_seconds = self._curves.tail_seconds(self._anchors.seconds)
        # A device is taken for a slower machine of this kind: scaling a coordinate leaves the hull as it is.
        plans = points(self.graph, self._curves.head_seconds(profile.heads), self.tail_seconds)
        self.candidates = tuple(point.cut for point in lower_hull(plans) if point.remote)
        self.ready_cuts: set[int] = set()

    def prepared(self, cut: int, seconds: float) -> None:
        """Takes in the idle time of a tail that has been built."""
        self._anchors.measure(cut, seconds)
        self.ready_cuts.add(cut)
        self._redraw()

    def observe(self, cut: int, seconds: float) -> None:
        """Takes in the time of a tail that a device asked for, one item of its batch."""
        if self._anchors.observe(cut, seconds):
            self._redraw()

    def _redraw(self) -> None:
        self.tail_seconds = self._curves.tail_seconds(self._anchors.seconds)
        self._on_change()

    def check(self, digest: str, cut: int, arrays: list[Array]) -> tuple[Cut, int]:
        """The cut that a request is about, and its batch size.

        Raises:
            ModelMismatchError: The device holds another file.
            CutError: There is no such cut, or it leaves nothing to the server.
            InputError: The tensors are not those that are live at the cut.
        """
        if digest != self.stored.manifest.digest:
            raise ModelMismatchError(
                f"model {self.name!r}: expected digest {self.stored.manifest.digest[:12]}..., got {digest[:12]!r}...; "
                "fetch the model again"
            )
        if cut >= self.graph.whole:
            raise CutError(f"cut {cut} is out of range: expected 0 to {self.graph.whole - 1} for model {self.name!r}")
        where = self.graph.cut(cut)
        try:
            return where, check_arrays(arrays, where.specs)
        except InputError as error:
            raise InputError(f"model {self.name!r}, cut {cut}: {error}") from error


class ServedModels:
    """The models by name; those that could not be opened keep their error, which is the answer to who asks.

    Attributes:
        version: Counts the changes of tail times and ready cuts.
    """

    def __init__(self, store: ModelStore, settings: Settings) -> None:
        """Opens the models.

        Raises:
            ModelNotFoundError: A model that the settings name is not there, or the store is empty.
            ModelError: One that they name cannot be served, or none can.
        """
        self._models: dict[str, ServedModel] = {}
        self._broken: dict[str, OffloadError] = {}
        self.version = 0
        measurements = Measurements(settings.worker_threads, settings.latency_folder)
        latency = measurements.model()
        names = settings.models or store.names()
        if not names:
            raise ModelNotFoundError(f"no models in {store.folder}: 'loadpart-edge export' puts some there")
        for name in names:
            try:
                stored = store.open(name)
                profile = measurements.profile(stored.manifest.digest)
                self._models[name] = ServedModel(name, stored, latency, profile, self._count_change)
            except OffloadError as error:
                if settings.models:
                    raise
                log.error("model %s is not served: %s", name, error)
                self._broken[name] = error
        if not self._models:
            raise ModelError(f"none of the models in {store.folder} can be served; the log has the reasons")

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def get(self, name: str) -> ServedModel:
        """A model.

        Raises:
            ModelNotFoundError: It is not served; the message lists those that are.
            ModelError: It could not be opened.
        """
        model = self._models.get(name)
        if model is not None:
            return model
        if name in self._broken:
            raise ModelError(str(self._broken[name]))
        raise ModelNotFoundError(f"no model {name!r}: expected one of {', '.join(self._models)}")

    def preparations(self) -> list[Prepare]:
        """The tails to build ahead."""
        return [Prepare(model.name, model.path, cut) for model in self for cut in model.candidates]

    def canary(self) -> Prepare:
        """The tail that takes nearest to `_CANARY_SECONDS`."""
        _, model, cut = min(
            (
                (abs(math.log(max(model.tail_seconds[cut.index], 1e-9) / _CANARY_SECONDS)), model, cut.index)
                for model in self
                for cut in model.graph.cuts
                if cut.index < model.graph.whole
            ),
            key=lambda each: each[0],
        )
        return Prepare(model.name, model.path, cut)

    def _count_change(self) -> None:
        self.version += 1
