"""The engine that runs a stored model, and the network as that engine can be cut."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from loadpart_common.engines.adoption import adopted_graph
from loadpart_common.engines.registry import setups_for
from loadpart_common.engines.speed import fastest

if TYPE_CHECKING:
    from loadpart_common.engines.base import EngineSetup
    from loadpart_common.engines.choice import EngineChoice
    from loadpart_common.store.model_store import StoredModel


def choose_engine(stored: StoredModel, choice: EngineChoice) -> tuple[EngineSetup, StoredModel]:
    """The engine for a model, and the model with the cuts that this engine has.

    Args:
        stored: The model.
        choice: What the settings say of the engine.

    Raises:
        SettingsError: The engine that was chosen does not exist, is not installed, or does not offer what was chosen.
        ModelError: No engine that is installed takes the model, or the chosen one cannot run it.
    """
    manifest = stored.manifest
    file = stored.path, manifest.format, manifest.digest
    setup = fastest(setups_for(manifest.format, choice), *file)
    return setup, replace(stored, graph=adopted_graph(setup, stored.graph, *file))
