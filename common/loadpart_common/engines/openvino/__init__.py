"""OpenVINO as an engine: segments are cut out of the network before it is compiled, and every cut is tried once.

It compiles each segment by itself, and what it fuses may differ from what it fuses in the whole network. Cuts at which
that shows in the bits are found when a network is adopted, and are not offered.
"""
