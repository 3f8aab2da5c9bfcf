"""Compares load-aware partitioning with its alternatives in one run: `python -m benchmarks.comparison`.

`grid` defines the conditions, `others` and `outside` load the server, `measure` runs the policies side by side,
`traces` does so while link and load change, `records` stores the results, `analysis` computes figures from them, and
`pictures` and `report` present these.
"""
