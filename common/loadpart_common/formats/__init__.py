"""Model formats: a file becomes a graph, a digest and segments. A format is a folder here and a line in `registry`."""
