"""The models that the daemon serves, by name and by digest."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from loadpart_common.errors import (
    ModelError,
    ModelNotFoundError,
    OffloadError,
)
from loadpart_common.latency.measurements import Measurements
from loadpart_common.store.engine_choice import choose_engine
from loadpart_edge.served_model import ServedModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.latency.model import LatencyModel
    from loadpart_common.store.model_store import ModelStore
    from loadpart_edge.settings import Settings
    from loadpart_edge.workers.base import Preparation

_CANARY_SECONDS = 0.02
"""Long enough for another process's time slices (3 ms and more) to fall into it, short enough to be in nobody's way."""

log = logging.getLogger(__name__)


class ServedModels:
    """The models by name; those that could not be opened keep their error, which is the answer to who asks.

    Attributes:
        version: Counts the changes of tail times and ready plans.
    """

    def __init__(self, store: ModelStore, settings: Settings) -> None:
        """Opens the models.

        Raises:
            ModelNotFoundError: A model that the settings name is not there, or the store is empty.
            ModelError: One that they name cannot be served, or none can.
            SettingsError: The latency model that was measured of this machine is in a file that is damaged.
        """
        self._models: dict[str, ServedModel] = {}
        self._by_digest: dict[str, list[ServedModel]] = {}
        self._broken: dict[str, OffloadError] = {}
        self.version = 0
        names = settings.models or store.names()
        if not names:
            raise ModelNotFoundError(f"no models in {store.folder}: 'loadpart-edge export' puts some there")
        latency: dict[EngineSetup, LatencyModel] = {}
        for name in names:
            try:
                setup, stored = choose_engine(store.open(name), settings.engine_choice)
                measurements = Measurements(setup, settings.latency_folder)
                profile = measurements.profile(stored.manifest.digest)
            except OffloadError as error:
                if settings.models:
                    raise
                log.error("model %s is not served: %s", name, error)
                self._broken[name] = error
                continue
            if setup not in latency:
                latency[setup] = measurements.model()
            model = ServedModel(
                name,
                stored,
                setup,
                latency[setup],
                profile,
                self._count_change,
                codecs=settings.codecs,
                memory_limit_bytes=settings.segment_memory_bytes,
            )
            self._models[name] = model
            self._by_digest.setdefault(stored.manifest.digest, []).append(model)
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

    def with_digest(self, digest: str) -> ServedModel:
        """A model whose file has a digest, as workers ask for it."""
        return self._by_digest[digest][0]

    def preparations(self) -> list[Preparation]:
        """The tails to build ahead, the canary's among them."""
        wanted = [model.preparation(cut) for model in self for cut in model.candidates]
        return list(dict.fromkeys([*wanted, self.canary()]))

    def canary(self) -> Preparation:
        """The tail that takes nearest to `_CANARY_SECONDS`."""
        _, model, cut = min(
            (
                (abs(math.log(max(model.tail_seconds[cut.index], 1e-9) / _CANARY_SECONDS)), model, cut.index)
                for model in self
                for cut in model.graph.cuts[:-1]
            ),
            key=lambda each: each[0],
        )
        return model.preparation(cut)

    def prepared(self, host: str, preparation: Preparation, seconds: float) -> None:
        """Takes in that a tail has been built on a host, and its idle time."""
        for model in self._by_digest[preparation.digest]:
            model.prepared(host, preparation.cut, seconds)

    def weigh(self, shares: Mapping[str, float]) -> None:
        """Takes in which hosts have workers, and the share of the jobs that each gets."""
        for model in self:
            model.weigh(shares)

    def _count_change(self) -> None:
        self.version += 1

    def changed_files(self) -> list[ServedModel]:
        """The models whose files are not those any more that were opened."""
        return [model for model in self if model.stored.is_changed]
