"""Honest devices: each asks for the tail of whole images, one after another, and waits for every answer.

    python -m benchmarks.security.honest TARGET STORE TOKEN...

One device a token. For every line on the standard input, it writes on a line what the devices have done so far.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import numpy as np

from loadpart_common.errors import OffloadError
from loadpart_common.planning.plan import DEFAULT_CODEC, PlanKey
from loadpart_common.store.model_store import ModelStore
from loadpart_common.wire.credentials import Credentials
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device.edges.connection import Connection, Tail

MODEL = "squeezenet"


class Device:
    def __init__(self, target: str, tail: Tail, token: str) -> None:
        self.answers = self.errors = self.wrong = 0
        self.slowest = 0.0
        self.last_error = ""
        self._connection = Connection(Endpoint(target, Credentials(token=token)), 1 << 28)
        self._tail = tail
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
        expected = None
        while True:
            started = time.perf_counter()
            try:
                (output,) = self._connection.infer(self._tail, [image], 30.0).outputs
            except OffloadError as error:
                self.errors += 1
                self.last_error = repr(error)
                time.sleep(0.05)
                continue
            self.answers += 1
            self.slowest = max(self.slowest, time.perf_counter() - started)
            expected = output if expected is None else expected
            self.wrong += not np.array_equal(output, expected)


def main() -> None:
    target, store, *tokens = sys.argv[1:]
    stored = ModelStore(Path(store)).open(MODEL)
    tail = Tail.of(stored.graph, MODEL, stored.manifest.digest, PlanKey(0, DEFAULT_CODEC))
    devices = [Device(target, tail, token) for token in tokens]
    for _ in sys.stdin:
        done = {
            "at": time.monotonic(),
            "answers": [device.answers for device in devices],
            "errors": sum(device.errors for device in devices),
            "wrong": sum(device.wrong for device in devices),
            "slowest": max(device.slowest for device in devices),
            "last_error": next((device.last_error for device in devices if device.last_error), ""),
        }
        for device in devices:
            device.slowest = 0.0
        print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
