"""Runs all of it, or some parts, and prints a table of each."""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial

from benchmarks.daemon import conditions, export_missing
from benchmarks.security import beside, cost, doors, malformed
from benchmarks.security.attacks import ATTACKS
from benchmarks.security.report import Report, console
from loadpart_edge.settings import load_settings

PARTS = {"malformed": malformed.run, "credentials": doors.run, "cost": cost.run, "attacks": beside.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.security", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer requests and rounds")
    parser.add_argument("--attack", action="append", default=[], choices=ATTACKS, help="this attack; may be repeated")
    parser.add_argument("part", nargs="*", help=f"any of {', '.join(PARTS)}; all when none is given")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.part if part not in PARTS]:
        parser.error(f"expected parts of {', '.join(PARTS)}, got {', '.join(unknown)}")
    parts = PARTS | {"attacks": partial(beside.run, only=arguments.attack)}
    export_missing()
    store = str(load_settings({}).store)
    report, started = Report(), time.monotonic()
    for name in arguments.part or parts:
        parts[name](report, store, quick=arguments.quick)
    console.print(conditions())
    console.print(f"{time.monotonic() - started:.0f} s")
    for failure in report.failures:
        console.print(f"FAIL {failure}", markup=False)
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
