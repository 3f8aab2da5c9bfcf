"""A process that uses a share of a core's time, in slices; the share is read from standard input."""

from __future__ import annotations

import os
import sys
import threading
import time

_PERIOD_SECONDS = 0.05


def main(core: int) -> None:
    os.sched_setaffinity(0, {core})
    level, changed = [0.0], threading.Event()

    def follow() -> None:
        for line in sys.stdin:
            level[0] = float(line)
            changed.set()
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()
    while True:
        if not level[0]:
            changed.wait()
            changed.clear()
            continue
        ends = time.monotonic() + _PERIOD_SECONDS
        spent = time.thread_time() + level[0] * _PERIOD_SECONDS  # CPU time, so that other processes do not reduce it
        while time.thread_time() < spent and (level[0] >= 1 or time.monotonic() < ends):
            pass
        if (rest := ends - time.monotonic()) > 0 and level[0] < 1:
            time.sleep(rest)


if __name__ == "__main__":
    main(int(sys.argv[1]))
