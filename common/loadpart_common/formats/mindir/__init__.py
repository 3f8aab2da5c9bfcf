"""MindIR, MindSpore's model format, read and written without MindSpore.

A file is a protobuf message with weights inside. `file` finds the weights without copying them, `program` makes sense
of the nodes, `segment` writes a part of the program as a model of its own, and `format` is the door to all three.
"""
