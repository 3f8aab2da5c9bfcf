"""Reads MindIR files into graphs, and writes segments of them, without MindSpore.

MindIR is MindSpore's model format: a protobuf message with weights inside. `file` finds the weights without copying
them, `program` makes sense of the nodes, `segment` writes a part of the program as a model of its own.
"""

from loadpart_common.formats.mindir.file import ModelFile, Weight
from loadpart_common.formats.mindir.program import Program
from loadpart_common.formats.mindir.segment import write_segment

__all__ = ["ModelFile", "Program", "Weight", "write_segment"]
