"""A server whose answers are late: the device keeps its deadlines, and takes whichever answer comes first."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from loadpart_device import OffloadClient
from tests.doorkeeper import Doorkeeper
from tests.support import eventually, inputs_for
from tests.toy import ToySegment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.daemon import Daemon


class Slow(Doorkeeper):
    """Keeps requests for a while.

    Attributes:
        seconds: How long.
        deadlines: Seconds that the device gave for each.
    """

    def __init__(self, target: str) -> None:
        self.seconds = 0.0
        self.deadlines: list[float] = []
        super().__init__(target)

    def _unary(self, name: str, request: bytes, context: Any) -> bytes:
        if name == "Infer":
            self.deadlines.append(context.time_remaining())
            time.sleep(self.seconds)
        return super()._unary(name, request, context)


@pytest.fixture
def slow(server: Daemon) -> Iterator[Slow]:
    with Slow(server.target) as keeper:
        yield keeper


@pytest.fixture
def connect(slow: Slow, cache: Path) -> Callable[..., OffloadClient]:
    def make(**options: Any) -> OffloadClient:
        client = OffloadClient(slow.target, "tiny", threads=1, cache=cache, **({"policy": 3} | options))
        client.wait_ready()
        return client

    return make


def test_an_answer_that_is_late_is_not_waited_for(slow: Slow, connect: Callable[..., OffloadClient]) -> None:
    with connect(metrics_listen="127.0.0.1:0") as client:
        inputs = inputs_for(client.graph)
        expected = client.infer(*inputs)
        assert (expected.plan.location, expected.hedged) == ("split", False)
        slow.seconds = 0.5
        result = client.infer(*inputs)
        assert (result.plan.location, result.hedged, result.resumed) == ("local", True, True)
        assert "no answer after" in result.plan.reason
        assert result.timings.total < 0.3
        np.testing.assert_array_equal(result.output, expected.output)
        asked = slow.calls.count("Infer")
        result = client.infer(*inputs)
        assert (result.plan.location, result.hedged) == ("local", False), "it is left alone for a while"
        assert slow.calls.count("Infer") == asked
        slow.seconds = 0.0
        eventually(lambda: client.infer(*inputs).plan.location == "split", "going back to the server", 5)


def test_the_answer_counts_when_it_comes_before_the_device_is_done(
    slow: Slow, connect: Callable[..., OffloadClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ToySegment.run

    def run_slowly(segment: ToySegment, arrays: list[Any]) -> list[Any]:
        time.sleep(0.3)
        return run(segment, arrays)

    with connect(policy="offload") as client:
        inputs = inputs_for(client.graph)
        expected = client.infer(*inputs)
        monkeypatch.setattr(ToySegment, "run", run_slowly)
        slow.seconds = 0.15
        result = client.infer(*inputs)
        assert (result.plan.location, result.hedged, result.resumed) == ("offload", True, False)
        np.testing.assert_array_equal(result.output, expected.output)
        eventually(lambda: client._hedging.wasted_seconds >= 0.2, "the waste is counted", 5)
        monkeypatch.undo()


def test_without_hedging_the_answer_is_waited_for_unless_there_is_a_deadline(
    slow: Slow, connect: Callable[..., OffloadClient]
) -> None:
    with connect(hedge=False) as client:
        inputs = inputs_for(client.graph)
        slow.seconds = 0.3
        result = client.infer(*inputs)
        assert (result.plan.location, result.hedged, result.late) == ("split", False, False)
        result = client.infer(*inputs, deadline=0.2)
        assert (result.plan.location, result.resumed, result.late) == ("local", True, False)
        assert result.timings.total < 0.2


def test_a_deadline_of_a_call_goes_before_that_of_the_client_and_to_the_server(
    slow: Slow, connect: Callable[..., OffloadClient]
) -> None:
    with connect(deadline=5.0) as client:
        inputs = inputs_for(client.graph)
        for deadline, given in ((None, 5.0), (2.0, 2.0), (30.0, 30.0)):
            result = client.infer(*inputs, deadline=deadline)
            assert (result.plan.location, result.late) == ("split", False)
            assert given - 1.0 < slow.deadlines[-1] <= given + 0.1  # gRPC rounds
    with connect() as client:
        assert client.infer(*inputs).late is False


@pytest.mark.parametrize("policy", ["local", 3])
def test_what_comes_after_its_deadline_is_given_and_told_as_late(
    connect: Callable[..., OffloadClient], policy: str | int
) -> None:
    with connect(policy=policy) as client:
        inputs = inputs_for(client.graph)
        expected = client.infer(*inputs).output
        result = client.infer(*inputs, deadline=1e-6)
        assert result.late
        assert result.to_json()["late"] is True
        assert result.plan.location == "local"
        np.testing.assert_array_equal(result.output, expected)


def test_hardly_any_answer_is_late_when_all_is_well(connect: Callable[..., OffloadClient]) -> None:
    with connect() as client:
        inputs = inputs_for(client.graph)
        results = [client.infer(*inputs) for _ in range(200)]
    assert sum(result.plan.location == "split" for result in results) >= 195
    assert sum(result.hedged for result in results) <= 4
