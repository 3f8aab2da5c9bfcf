"""Load-aware partition beside everything else that a user could do, in one run: `python -m benchmarks.comparison`.

`grid` says under which conditions, `others` and `outside` make the server's load, `measure` runs the policies side by
side, `traces` does so while the world changes, `records` keeps what came of it, `analysis` makes figures of that, and
`pictures` and `report` show them.
"""
