"""ONNX, the format that most networks are exchanged in."""
