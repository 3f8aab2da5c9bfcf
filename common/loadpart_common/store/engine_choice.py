"""The engine that runs a stored model, and the network as that engine can be cut."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from loadpart_common.engines.adoption import adopted_graph
from loadpart_common.engines.registry import AUTO, engine_for

if TYPE_CHECKING:
    from loadpart_common.engines.base import Engine
    from loadpart_common.store.model_store import StoredModel


def choose_engine(stored: StoredModel, choice: str = AUTO) -> tuple[type[Engine], StoredModel]:
    """The engine for a model, and the model with the cuts that this engine has.

    Args:
        stored: The model.
        choice: Name of the engine, or `AUTO`.

    Raises:
        SettingsError: The engine that was chosen does not exist, or is not installed.
        ModelError: No engine that is installed takes the model, or the chosen one cannot run it.
    """
    manifest = stored.manifest
    engine = engine_for(manifest.format, choice)
    graph = adopted_graph(engine, stored.graph, stored.path, manifest.format, manifest.digest)
    return engine, replace(stored, graph=graph)
