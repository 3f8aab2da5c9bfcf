"""Compiles and runs segments of networks, with MindSpore, which is imported when an engine is made."""

from loadpart_common.engine.engine import CompiledSegment, Engine, LoadedModel
from loadpart_common.engine.executor import EngineExecutor

__all__ = ["CompiledSegment", "Engine", "EngineExecutor", "LoadedModel"]
