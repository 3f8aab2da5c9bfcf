"""ONNX Runtime as an engine: a network is optimised once as a whole, and segments are cut out of the result.

A segment that is optimised by itself gives other bits than the whole network: what is fused, and which layout a tensor
has, depends on what stands around it. Cut out of the optimised network it runs the very same operators.
"""
