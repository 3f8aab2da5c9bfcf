"""How quick a codec is on this machine, and making codecs ready for use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from loadpart_common.codecs.registry import CODECS

if TYPE_CHECKING:
    from collections.abc import Iterable

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


def make_ready(names: Iterable[str]) -> None:
    """Uses codecs once, since the first use imports what they need, which takes longer than all others."""
    for name in names:
        codec = CODECS[name]
        array = codec.sample()
        data = codec.encode(array)
        if data is not None:
            codec.decode(data, array.dtype, array.shape)
