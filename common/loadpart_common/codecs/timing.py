"""How quick a codec is on this machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadpart_common.codecs.base import Codec

_RUNS = 3


def encode_seconds_a_byte(codec: Codec) -> float:
    """Seconds that a codec takes to write an array like those that it is made for, by the array's bytes.

    The least of some runs: an optimistic figure, since its data is in the processor's caches.
    """
    array = codec.sample()
    seconds = []
    for _ in range(_RUNS):
        started = time.perf_counter()
        codec.encode(array)
        seconds.append(time.perf_counter() - started)
    return min(seconds) / array.nbytes
