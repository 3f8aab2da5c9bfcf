"""Engines: they compile segments of networks and run them. An engine is a folder here and a line in `registry`.

Around any engine stand the cache of its compiled segments (`segment_cache`), the timing of idle segments (`timing`) and
the thread that owns it (`executor`).
"""
