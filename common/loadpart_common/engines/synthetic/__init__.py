"""Random networks for the calibration: `drawing` says what they are made of, and each engine builds them its own way.

Engines that take ONNX have one way in common, `onnx_file`; MindSpore's is in its zoo.
"""
