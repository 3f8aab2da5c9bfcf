"""Model formats: they read graph, digest and segments from a file. Each is a folder here and a line in `registry`."""
