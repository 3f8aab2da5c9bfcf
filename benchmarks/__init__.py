"""Benchmarks: each module is one, run by `make bench-NAME`; each prints its conditions with its figures."""
