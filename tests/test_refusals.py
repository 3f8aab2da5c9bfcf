"""What a device does when a server refuses it, and how long it waits before it tries again."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import grpc
import pytest

from loadpart_common.errors import OverloadedError
from loadpart_common.wire.error_codes import ERROR_KEY, RETRY_AFTER_KEY, metadata_of
from loadpart_device import AccessError, AuthenticationError, OffloadClient, PermissionDeniedError, UnavailableError
from loadpart_device.edges.availability import Availability
from loadpart_device.edges.backoff import Backoff
from tests.doorkeeper import Doorkeeper
from tests.support import Clock, eventually, inputs_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.daemon import Daemon


class AlwaysMost(random.Random):
    """Draws the largest of what is asked for."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        return b


REFUSALS = [
    (grpc.StatusCode.UNAUTHENTICATED, AuthenticationError),
    (grpc.StatusCode.PERMISSION_DENIED, PermissionDeniedError),
]


@pytest.fixture
def door(server: Daemon) -> Iterator[Doorkeeper]:
    with Doorkeeper(server.target) as keeper:
        yield keeper


@pytest.mark.parametrize(("code", "error"), REFUSALS)
def test_a_client_that_is_not_let_in_is_told_at_once(
    door: Doorkeeper, cache: Path, code: grpc.StatusCode, error: type[AccessError]
) -> None:
    door.refuse(code=code)
    with pytest.raises(error, match="refused by the test"):
        OffloadClient(door.target, "tiny", threads=1, hedge=False, cache=cache)


@pytest.mark.parametrize(("code", "error"), REFUSALS)
def test_a_refused_inference_is_an_error_and_not_a_reason_to_stay_local(
    door: Doorkeeper, cache: Path, code: grpc.StatusCode, error: type[AccessError]
) -> None:
    with OffloadClient(door.target, "tiny", threads=1, hedge=False, cache=cache, policy=3) as client:
        inputs = inputs_for(client.graph)
        assert client.infer(*inputs).plan.server == door.target
        door.refuse("Infer", code=code)
        with pytest.raises(error):
            client.infer(*inputs)


def test_a_right_that_is_withdrawn_in_the_background_is_raised_and_comes_back(door: Doorkeeper, cache: Path) -> None:
    with OffloadClient(door.target, "tiny", threads=1, hedge=False, cache=cache) as client:
        inputs = inputs_for(client.graph)
        assert client.wait_ready()
        door.refuse(code=grpc.StatusCode.UNAUTHENTICATED)

        def is_refused() -> bool:
            try:
                client.infer(*inputs)
            except AuthenticationError:
                return True
            return False

        eventually(is_refused, "the refusal")
        client.policy = "local"
        assert client.infer(*inputs).plan.location == "local", "a local inference needs no server"
        client.policy = "load-aware"
        door.refusals = {}
        eventually(lambda: not is_refused(), "being let in again")


def test_an_overloaded_server_is_left_alone_for_as_long_as_it_says(door: Doorkeeper, cache: Path) -> None:
    """Its statuses continue to arrive meanwhile, and do not end the waiting time."""
    metadata = ((ERROR_KEY, OverloadedError.code), (RETRY_AFTER_KEY, "1.5"))
    with OffloadClient(door.target, "tiny", threads=1, hedge=False, cache=cache, policy=3) as client:
        inputs = inputs_for(client.graph)
        assert client.infer(*inputs).plan.location == "split"
        door.refuse("Infer", code=grpc.StatusCode.RESOURCE_EXHAUSTED, metadata=metadata)
        refused = time.monotonic()
        result = client.infer(*inputs)
        assert result.plan.location == "local"
        assert "refused by the test" in result.plan.reason
        door.refusals = {}
        eventually(lambda: client.infer(*inputs).plan.location == "split", "coming back")
        assert time.monotonic() - refused >= 1.5


def test_a_failing_server_is_left_alone_for_longer_each_time_and_then_tried_by_one() -> None:
    clock = Clock()
    availability = Availability(clock, Backoff(0.25, 2.0, AlwaysMost()))
    assert availability.why_not is None
    for expected in (0.25, 0.5, 1.0, 2.0, 2.0):
        availability.failed(UnavailableError("gone"))
        assert availability.why_not == f"the server failed: gone; it is tried again in {expected:.1f} s"
    clock.now += 2.1
    assert availability.why_not is None
    availability.begin()
    assert availability.why_not is not None, "the others wait for what comes of the first try"
    availability.connected()
    assert availability.why_not is not None, "a status on the same connection proves nothing"
    availability.succeeded()
    assert availability.why_not is None
    availability.failed(OverloadedError("full", retry_after_seconds=0.1))
    assert availability.why_not == "the server failed: full; it is tried again in 0.1 s"
    clock.now += 0.2
    assert availability.why_not is None
    availability.begin()
    assert availability.why_not is None, "an overload is no failure"


def test_a_lost_connection_stays_lost_until_there_is_one() -> None:
    clock = Clock()
    availability = Availability(clock, Backoff(0.25, 2.0, AlwaysMost()))
    availability.failed(UnavailableError("gone"))
    availability.lost(UnavailableError("gone for good"))
    clock.now += 100
    availability.succeeded()
    availability.lost(UnavailableError("gone for good"))
    assert availability.why_not == "the server failed: gone for good"
    availability.connected()
    assert availability.why_not is None


def test_a_refusal_is_remembered_until_it_is_time_to_try() -> None:
    clock = Clock()
    availability = Availability(clock)
    refusal = AuthenticationError("who are you?")
    availability.failed(refusal)
    assert availability.refusal is refusal
    clock.now += 1
    assert availability.refusal is None
    availability.lost(refusal)
    clock.now += 100
    assert availability.refusal is refusal
    availability.connected()
    assert availability.refusal is None


def test_the_time_to_come_back_goes_over_the_wire() -> None:
    assert dict(metadata_of(OverloadedError("full", retry_after_seconds=1.5)))[RETRY_AFTER_KEY] == "1.500"
    assert RETRY_AFTER_KEY not in dict(metadata_of(OverloadedError("full")))
