"""Makes the calling thread flush denormal numbers to zero, as MindSpore's own threads do.

A kernel of MindSpore runs either on one of MindSpore's own threads, which flush denormals, or on the thread that runs
the graph, which by default does not. The choice changes from run to run, and with it every result below 1.2e-38. When
all threads flush, equal inputs give equal bits.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ENVIRONMENT_BYTES = 64  # more than glibc's fenv_t on any machine
_REGISTERS = {
    # machine: (offset of the control register in glibc's fenv_t, the bits to set in it)
    "x86_64": (28, 1 << 15 | 1 << 6),  # MXCSR: flush results to zero, take denormal inputs as zero
    "aarch64": (0, 1 << 24),  # FPCR: both
}

_libm = ctypes.CDLL("libm.so.6")
_register = _REGISTERS.get(platform.machine())


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """Flushes denormals within the block, on this thread; does nothing on an unknown type of machine."""
    if _register is None:
        yield
        return
    before = ctypes.create_string_buffer(_ENVIRONMENT_BYTES)
    _libm.fegetenv(before)
    offset, bits = _register
    during = ctypes.create_string_buffer(before.raw, _ENVIRONMENT_BYTES)
    (value,) = struct.unpack_from("I", during, offset)
    struct.pack_into("I", during, offset, value | bits)
    _libm.fesetenv(during)
    try:
        yield
    finally:
        _libm.fesetenv(before)
