"""Other devices, which send a server whole images of all its networks, at a level that is read from standard input.

Each device waits for a frame, sends it, and waits for the answer; of the frames that come meanwhile it keeps the
newest. Frames come at random (a Poisson process), at the same rate to every device. Each line that is read is a level
and a seed: the share of the server's time that all of them ask for together.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.store import ModelStore
from loadpart_common.wire import CODECS
from loadpart_device.server import Server

if TYPE_CHECKING:
    from loadpart_common.tensors import Array

DEVICES_A_NETWORK = 2
_ANSWER_SECONDS = 120.0


class OtherDevice(threading.Thread):
    """One of them."""

    def __init__(self, target: str, network: str, image: Array) -> None:
        super().__init__(daemon=True)
        self._server, self._network, self._image = Server(target, 1 << 28), network, image
        self._info = self._server.list_models(_ANSWER_SECONDS)[network]
        self.tail_seconds = self._info.tail_seconds[0]
        self._changed = threading.Condition()
        self._rate, self._due = 0.0, float("inf")
        self._random = random.Random()

    def offer(self, rate: float, seed: str) -> None:
        """Has frames come at a rate, in frames a second, from now on."""
        with self._changed:
            self._random = random.Random(seed)
            self._rate, self._due = rate, self._next(time.monotonic(), rate)
            self._changed.notify()

    def run(self) -> None:
        try:
            while True:
                self._await_frame()
                self._server.infer(self._network, self._info.digest, 0, [self._image], CODECS["raw"], _ANSWER_SECONDS)
        except BaseException:  # a load that is less than it should be must not go unnoticed
            traceback.print_exc()
            os._exit(1)

    def _await_frame(self) -> None:
        with self._changed:
            while (wait := self._due - time.monotonic()) > 0:
                self._changed.wait(min(wait, threading.TIMEOUT_MAX))
            self._due = self._next(time.monotonic(), self._rate)  # what came meanwhile gave way to this one

    def _next(self, after: float, rate: float) -> float:
        return after + self._random.expovariate(rate) if rate else float("inf")


def main(target: str, networks: list[str]) -> None:
    os.nice(19)  # these devices are not the one that is measured: they share its core, and must not hold it up
    store = ModelStore(Path(os.environ["LOADPART_EDGE_STORE"]))
    devices = []
    for network in networks:
        spec = store.open(network).manifest.graph.inputs[0]
        image = np.random.default_rng(0).integers(0, 256, spec.concrete(1), np.uint8)
        devices += [OtherDevice(target, network, image) for _ in range(DEVICES_A_NETWORK)]
    for device in devices:
        device.start()
    seconds = sum(device.tail_seconds for device in devices)
    for line in sys.stdin:
        level, seed = line.split()
        for number, device in enumerate(devices):
            device.offer(float(level) / seconds, f"{seed}-{number}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","))
