"""Compiles and runs segments of networks, with MindSpore, which is imported when an engine is made."""

from loadpart_common.engines.executor import EngineExecutor
from loadpart_common.engines.mindspore.engine import CompiledSegment, Engine, LoadedModel

__all__ = ["CompiledSegment", "Engine", "EngineExecutor", "LoadedModel"]
