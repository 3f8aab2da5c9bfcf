"""The device of the benchmark: infers at a steady rate, and keeps what came of every inference."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.errors import OffloadError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from loadpart_common.tensors import Array
    from loadpart_device import OffloadClient

BOUND_FACTOR, BOUND_SECONDS = 1.3, 0.05
"""No answer is to be later than 1.3 times the device alone, plus 50 ms."""

DEADLINE_SLACK_SECONDS = 0.02
_LOCAL_RUNS = 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of an inference.

    Attributes:
        at: When it began, on the clock `time.monotonic`.
        seconds: How long it took.
        deadline: Its deadline in seconds; None when it had none.
        location: Where the outputs came from.
        is_right: Whether the outputs are those of the device alone, bit for bit.
        hedged: Whether the device began while the server's answer was out.
        resumed: Whether the device finished for the server.
        reason: Why, in words; the error when there was one.
    """

    at: float
    seconds: float
    deadline: float | None
    location: str
    is_right: bool
    hedged: bool
    resumed: bool
    reason: str


class Device:
    """A device, and its answers.

    Attributes:
        answers: What came of each inference.
        image: What it infers.
        cache: Its folder of fetched models.
    """

    def __init__(self, client: OffloadClient, image: Array, cache: str) -> None:
        self.client, self.image, self.cache = client, image, cache
        self._alone: list[float] = []
        self._expected = self.measure_alone()
        self.answers: list[Answer] = []

    def measure_alone(self, *, anew: bool = False) -> tuple[Array, ...]:
        """Has the device compute alone some times, before and after a scenario, since its speed varies by the minute.

        Args:
            anew: Whether to forget earlier measurements.
        """
        policy, self.client.policy = self.client.policy, "local"
        runs = [self.client.infer(self.image) for _ in range(_LOCAL_RUNS)]
        self.client.policy = policy
        if anew:
            self._alone.clear()
        self._alone += [run.timings.total for run in runs]
        return runs[0].outputs

    @property
    def alone_seconds(self) -> float:
        """What it takes by itself: the median."""
        return statistics.median(self._alone)

    @property
    def bound_seconds(self) -> float:
        """When an answer is too late."""
        return BOUND_FACTOR * self.alone_seconds + BOUND_SECONDS

    def infer(self, deadline: float | None = None) -> Answer:
        """Infers once."""
        at, started = time.monotonic(), time.perf_counter()
        try:
            result = self.client.infer(self.image, deadline=deadline)
        except OffloadError as error:
            seconds = time.perf_counter() - started
            answer = Answer(at, seconds, deadline, "error", False, False, False, f"{type(error).__name__}: {error}")
        else:
            right = all(map(np.array_equal, result.outputs, self._expected))
            plan = result.plan
            answer = Answer(
                at, time.perf_counter() - started, deadline, plan.location, right, result.hedged, result.resumed,
                plan.reason,
            )  # fmt: skip
        self.answers.append(answer)
        return answer

    def wait_remote(self, seconds: float) -> None:
        """Infers until a server takes part, or for so many seconds."""
        end = time.monotonic() + seconds
        while self.infer().location in {"local", "error"} and time.monotonic() < end:
            pass

    def run(self, seconds: float, rate: float) -> None:
        """Infers at a rate for some seconds."""
        end = time.monotonic() + seconds
        due = time.monotonic()
        while due < end:
            time.sleep(max(due - time.monotonic(), 0.0))
            self.infer()
            due = max(due + 1 / rate, time.monotonic())

    def running(self, seconds: float, rate: float, events: Sequence[tuple[float, Callable[[], object]]]) -> list[float]:
        """Infers at a rate while events happen; gives when they did, on the clock `time.monotonic`.

        Args:
            seconds: How long.
            rate: Inferences a second.
            events: Seconds after the start, and what then happens, in order.
        """
        self.answers = []
        started, times = time.monotonic(), []
        thread = threading.Thread(target=self.run, args=(seconds, rate))
        thread.start()
        for after, event in events:
            time.sleep(max(started + after - time.monotonic(), 0.0))
            event()
            times.append(time.monotonic())
        thread.join()
        return times

    def late(self) -> list[Answer]:
        """The answers that came later than they may."""
        return [
            answer
            for answer in self.answers
            if answer.seconds
            > (self.bound_seconds if answer.deadline is None else answer.deadline + DEADLINE_SLACK_SECONDS)
        ]

    def remote_again(self, since: float) -> float | None:
        """Seconds from a moment until the first inference after it that a server took part in; None without any."""
        return next(
            (a.at + a.seconds - since for a in self.answers if a.at >= since and a.location in {"split", "offload"}),
            None,
        )
