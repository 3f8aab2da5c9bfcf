"""Runs all of it, and prints a table of each part.

python -m benchmarks.security [--quick] [malformed|attacks|credentials|cost ...]
"""

from __future__ import annotations

import sys
import time

from benchmarks.daemon import conditions, export_missing
from benchmarks.security import beside, cost, doors, malformed
from benchmarks.security.report import Report, console
from loadpart_edge.settings import load_settings

PARTS = {"malformed": malformed.run, "credentials": doors.run, "cost": cost.run, "attacks": beside.run}


def main() -> None:
    arguments = sys.argv[1:]
    quick = "--quick" in arguments
    wanted = [argument for argument in arguments if argument in PARTS] or list(PARTS)
    export_missing()
    store = str(load_settings({}).store)
    report, started = Report(), time.monotonic()
    for name in wanted:
        PARTS[name](report, store, quick=quick)
    console.print(conditions())
    console.print(f"{time.monotonic() - started:.0f} s")
    for failure in report.failures:
        console.print(f"FAIL {failure}", markup=False)
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
