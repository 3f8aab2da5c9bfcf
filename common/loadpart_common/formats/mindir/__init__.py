"""MindIR, MindSpore's model format, read and written without MindSpore.

A file is a protobuf message with weights inside. `file` finds the weights without copying them, `program` interprets
the nodes, `segment` writes a part of the program as a model of its own, and `format` combines them into the interface
that the rest of the project uses.
"""
