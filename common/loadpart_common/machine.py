"""Which machine this is."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

_NUMBERS = re.compile("s{0,3}sse|avx|amx|fma|f16c|fp|asimd|neon|sve|sme|bf16|i8mm")


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


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
