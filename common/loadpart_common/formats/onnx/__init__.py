"""ONNX, the format that most networks are exchanged in.

`program` is a network as an ONNX model with the names of its values, which the engines that take ONNX work from;
other formats translate themselves into it.
"""
