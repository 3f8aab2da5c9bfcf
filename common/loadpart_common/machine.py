"""Which machine this is."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_NUMBERS = re.compile("s{0,3}sse|avx|amx|fma|f16c|fp|asimd|neon|sve|sme|bf16|i8mm")


def usable_cores() -> int:
    """The cores that this process may use: those that it may run on, and not more than its time is enough for."""
    return max(1, int(min(len(os.sched_getaffinity(0)), _quota_cores())))


def _quota_cores() -> float:
    """Cores' worth of time that the process gets of its control groups; infinite without a bound.

    The file `cpu.max` of a group has the microseconds of a period and the period (Linux,
    Documentation/admin-guide/cgroup-v2.rst). A container sees its own group as the root of all.
    """
    least = math.inf
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        group = next(line for line in lines if line.startswith("0::"))[len("0::/") :]
        for folder in (_GROUPS / group, *(_GROUPS / group).parents):
            if folder.is_relative_to(_GROUPS) and (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
                if quota != "max":
                    least = min(least, int(quota) / int(period))
    return least


def instruction_set() -> str:
    """The instructions for numbers that the processor has, as the kernel names them; empty where it does not."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return " ".join(sorted(filter(_NUMBERS.match, found[1].split()))) if found else ""


def processor_name() -> str:
    """What the processor calls itself."""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def machine_name() -> str:
    """Processor and number of cores."""
    return f"{processor_name()}, {os.cpu_count()} cores"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
