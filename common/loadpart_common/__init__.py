"""What the device and the edge server share: graphs, cuts, costs, models, the engine and the wire.

Data's way through: a MindIR file (`mindir`) is read into a `graph`; the graph gives cuts; `latency` gives each cut
seconds; `cost` picks one; the `engine` runs head and tail; `wire` carries tensors between them.
"""
