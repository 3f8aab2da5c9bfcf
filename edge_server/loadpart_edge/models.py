"""The models that the daemon serves, and the check of what a device sends for one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from loadpart_common.cost import lower_hull, points
from loadpart_common.errors import (
    CutError,
    InputError,
    ModelError,
    ModelMismatchError,
    ModelNotFoundError,
    OffloadError,
)
from loadpart_common.latency import head_seconds, tail_seconds
from loadpart_common.tensors import check_arrays
from loadpart_edge.messages import Prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

    from loadpart_common.graph import Cut
    from loadpart_common.store import ModelStore, StoredModel
    from loadpart_common.tensors import Array
    from loadpart_edge.settings import Settings

log = logging.getLogger(__name__)


class ServedModel:
    """A model that is served.

    Attributes:
        name: Its name.
        stored: Its file and manifest.
        candidates: Cuts whose tails are built ahead: the plans that can win.
        tail_seconds: Idle seconds of each cut's tail on this machine, one item, shape (layers + 1,).
        ready_cuts: Cuts whose tails are built.
    """

    def __init__(self, name: str, stored: StoredModel) -> None:
        self.name = name
        self.stored = stored
        self.graph = stored.manifest.graph
        self.tail_seconds = tail_seconds(self.graph, {})
        plans = points(self.graph, head_seconds(self.graph, {}), self.tail_seconds)
        self.candidates = tuple(point.cut for point in lower_hull(plans) if point.remote)
        self.ready_cuts: set[int] = set()
        self._measured: dict[int, float] = {}

    def measured(self, cut: int, seconds: float) -> None:
        """Takes in the idle time of a tail that has been built; of several workers the quickest counts."""
        self._measured[cut] = min(seconds, self._measured.get(cut, seconds))
        self.ready_cuts.add(cut)
        self.tail_seconds = tail_seconds(self.graph, self._measured)

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
    """The models by name; those that could not be opened keep their error, which is the answer to who asks."""

    def __init__(self, store: ModelStore, settings: Settings) -> None:
        """Opens the models.

        Raises:
            ModelNotFoundError: A model that the settings name is not there, or the store is empty.
            ModelError: One that they name cannot be served, or none can.
        """
        self._models: dict[str, ServedModel] = {}
        self._broken: dict[str, OffloadError] = {}
        names = settings.models or store.names()
        if not names:
            raise ModelNotFoundError(f"no models in {store.folder}: 'loadpart-edge export' puts some there")
        for name in names:
            try:
                self._models[name] = ServedModel(name, store.open(name))
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
        return [Prepare(model.name, str(model.stored.path), cut) for model in self for cut in model.candidates]
