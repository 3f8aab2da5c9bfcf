"""Other devices: they send whole images for all networks to a server, at a load level read from standard input.

Each device waits for a frame, sends it, and waits for the answer; of the frames that arrive meanwhile it keeps only the
newest. A frame that the server refuses, or cannot answer in time, is lost. Frames arrive as a Poisson process, at the
same rate on every device. Each line of the input is a level and a seed; the level is the share of the server's time
that all devices together ask for. The devices start in the steady state, some of them with a frame in the queue: from
an empty queue, that state takes half a minute to reach at 100 %.
"""

from __future__ import annotations

import contextlib
import heapq
import math
import os
import random
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.errors import DeadlineError, OverloadedError
from loadpart_common.planning.plan import DEFAULT_CODEC, PlanKey
from loadpart_common.store.model_store import ModelStore
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device.edges.connection import Connection, Tail

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadpart_common.graph import Graph
    from loadpart_common.tensors import Array

DEVICES_A_NETWORK = 2
_LONG_RUN_SECONDS = 60.0
_APART_SECONDS = 0.002  # between queued frames, so that they arrive in order
_ANSWER_SECONDS = 120.0


class OtherDevice(threading.Thread):
    """One of the other devices; its thread sends the frames."""

    def __init__(self, target: str, network: str, graph: Graph, image: Array) -> None:
        super().__init__(daemon=True)
        self._server, self._image = Connection(Endpoint(target), 1 << 28), image
        info = self._server.list_models(_ANSWER_SECONDS)[network]
        self._tail = Tail.of(graph, network, info.digest, PlanKey(0, DEFAULT_CODEC))
        self.tail_seconds = info.tail_seconds[0]
        self._changed = threading.Condition()
        self._rate, self._due = 0.0, float("inf")
        self._random = random.Random()

    def offer(self, rate: float, seed: str, first: float) -> None:
        """Sets the rate of frames from now on.

        Args:
            rate: Frames a second.
            seed: Seed of the random times.
            first: Seconds until the first frame.
        """
        with self._changed:
            self._random = random.Random(seed)
            self._rate, self._due = rate, time.monotonic() + first
            self._changed.notify()

    def run(self) -> None:
        try:
            while True:
                self._await_frame()
                with contextlib.suppress(OverloadedError, DeadlineError):
                    self._server.infer(self._tail, [self._image], _ANSWER_SECONDS)
        except BaseException:  # otherwise the load would be too low, unnoticed
            traceback.print_exc()
            os._exit(1)

    def _await_frame(self) -> None:
        with self._changed:
            while (wait := self._due - time.monotonic()) > 0:
                self._changed.wait(min(wait, threading.TIMEOUT_MAX))
            # This frame is the newest; older ones that arrived meanwhile are dropped.
            self._due = time.monotonic() + self._random.expovariate(self._rate)


def first_frames(rate: float, tail_seconds: Sequence[float], seed: str) -> list[float]:
    """Seconds until each device sends its next frame, from a moment in the steady state.

    Simulates a server that processes the frames one at a time, in the order in which they are sent. A device whose
    frame is queued at that moment sends it at once, in the order of the queue.

    Args:
        rate: Frames that arrive on each device, a second.
        tail_seconds: Server time of a frame of each device.
        seed: Seed of the random times.
    """
    if not rate:
        return [math.inf] * len(tail_seconds)
    rng = random.Random(seed)
    sends = [(rng.expovariate(rate), device) for device in range(len(tail_seconds))]
    heapq.heapify(sends)
    free, ends = 0.0, [0.0] * len(tail_seconds)
    while sends[0][0] < _LONG_RUN_SECONDS:
        sent, device = heapq.heappop(sends)
        free = ends[device] = max(free, sent) + tail_seconds[device]
        heapq.heappush(sends, (max(free, sent + rng.expovariate(rate)), device))
    waiting = sorted((end, device) for device, end in enumerate(ends) if end > _LONG_RUN_SECONDS)
    first = {device: sent - _LONG_RUN_SECONDS for sent, device in sends}
    first |= {device: place * _APART_SECONDS for place, (_, device) in enumerate(waiting)}
    return [first[device] for device in range(len(tail_seconds))]


def main(target: str, networks: list[str]) -> None:
    os.nice(19)  # these devices share a core with the measured one, and must not delay it
    store = ModelStore(Path(os.environ["LOADPART_EDGE_STORE"]))
    devices = []
    for network in networks:
        graph = store.open(network).graph
        image = np.random.default_rng(0).integers(0, 256, graph.inputs[0].concrete(1), np.uint8)
        devices += [OtherDevice(target, network, graph, image) for _ in range(DEVICES_A_NETWORK)]
    for device in devices:
        device.start()
    tail_seconds = [device.tail_seconds for device in devices]
    for line in sys.stdin:
        level, seed = line.split()
        rate = float(level) / sum(tail_seconds)
        for number, (device, first) in enumerate(zip(devices, first_frames(rate, tail_seconds, seed), strict=True)):
            device.offer(rate, f"{seed}-{number}", first)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","))
