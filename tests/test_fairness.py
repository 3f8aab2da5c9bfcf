"""Who is served next, who is refused, and who may have tails built: the scheduler under load, without processes."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadpart_common.errors import DeadlineError, InternalError, OverloadedError, UnavailableError
from loadpart_edge.rpc.quota import Quota
from loadpart_edge.scheduling.builds import BUILD_SHARE, Builds
from loadpart_edge.scheduling.devices import MOST_OF_A_PARTY, ActiveDevices
from loadpart_edge.scheduling.job import Owner, QueuedJob
from loadpart_edge.scheduling.pacing import Pacing
from loadpart_edge.scheduling.queue import JobQueue
from loadpart_edge.scheduling.scheduler import Scheduler
from loadpart_edge.workers.base import Preparation
from tests.fakes import CANARY, FakeWorkers, job, until
from tests.support import Clock

if TYPE_CHECKING:
    from collections.abc import Coroutine

MODEST, GREEDY = Owner("here", "modest"), Owner("here", "greedy")


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(5):
            await work

    asyncio.run(bounded())


async def turns(number: int = 8) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def queued(owner: Owner, number: int = 0, seconds: float = 0.1) -> QueuedJob:
    return QueuedJob(job(number), lambda _: seconds, owner)


def numbers(queue: JobQueue) -> list[int]:
    return [each.job.tensors[0].data[0] for each in queue.drain()]


# The queue.


def test_a_device_with_one_job_is_served_before_the_second_one_of_a_device_with_many() -> None:
    async def test() -> None:
        queue = JobQueue(100)
        for number in range(10):
            queue.append(queued(GREEDY, number))
        assert queue.seconds_ahead(MODEST, 0.1) == pytest.approx(0.1)
        assert queue.seconds_ahead(GREEDY, 0.1) == pytest.approx(1.0)
        queue.append(queued(MODEST, 77))
        assert numbers(queue) == [0, 77, *range(1, 10)]

    run(test())


def test_a_party_with_many_devices_gets_no_more_than_one_with_a_single_device() -> None:
    async def test() -> None:
        queue = JobQueue(100)
        for number in range(8):
            queue.append(queued(Owner("crowd", f"device{number}"), number))
        for number in range(100, 104):
            queue.append(queued(Owner("alone", "device"), number))
        order = numbers(queue)
        assert sorted(order[:8]) == [0, 1, 2, 3, 100, 101, 102, 103]

    run(test())


def test_long_jobs_count_for_more_than_short_ones() -> None:
    async def test() -> None:
        queue = JobQueue(100)
        for number in range(4):
            queue.append(queued(GREEDY, number, seconds=0.4))
        for number in range(10, 18):
            queue.append(queued(MODEST, number, seconds=0.1))
        order = numbers(queue)
        assert [number for number in order[:5] if number >= 10] == [10, 11, 12, 13], "four short ones for a long one"

    run(test())


def test_a_device_for_which_a_tail_was_built_waits_longer_for_its_jobs() -> None:
    async def test() -> None:
        queue = JobQueue(100)
        for number in range(4):
            queue.append(queued(GREEDY, number))
        queue.charge(GREEDY, 0.35)
        for number in range(10, 18):
            queue.append(queued(MODEST, number))
        assert numbers(queue)[:4] == [10, 11, 12, 13]

    run(test())


def test_a_device_that_was_idle_has_saved_nothing_up() -> None:
    async def test() -> None:
        queue = JobQueue(100)
        for number in range(50):
            queue.append(queued(GREEDY, number))
        for _ in range(40):
            queue.pop()
        for number in range(100, 105):
            queue.append(queued(MODEST, number))
        first = [queue.pop() for _ in range(6)]
        assert sum(each is not None and each.owner == MODEST for each in first) == 3

    run(test())


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz"), st.floats(0.001, 10), st.booleans()), max_size=60)
)
def test_whatever_comes_and_goes_nothing_is_lost_and_the_sums_are_right(
    steps: list[tuple[str, str, float, bool]],
) -> None:
    async def test() -> None:
        queue, waiting = JobQueue(1000), []
        for party, device, seconds, takes in steps:
            if takes and waiting:
                taken = queue.pop()
                assert taken in waiting
                waiting.remove(taken)
            else:
                waiting.append(queued(Owner(party, device), seconds=seconds))
                queue.append(waiting[-1])
            assert len(queue) == len(waiting)
            assert queue.predicted_seconds == pytest.approx(sum(each.predicted_seconds for each in waiting))
        if waiting:
            queue.remove(waiting.pop())
        assert {id(each) for each in queue.drain()} == {id(each) for each in waiting}
        assert queue.predicted_seconds == pytest.approx(0)

    run(test())


def test_a_full_queue_makes_room_for_a_device_with_fewer_jobs() -> None:
    async def test() -> None:
        factory = FakeWorkers()
        scheduler = Scheduler(factory, seats=1, queue_limit=3, preparations=(CANARY,))
        await scheduler.start()
        greedy = [asyncio.create_task(scheduler.run(job(n), lambda _: 0.5, GREEDY)) for n in range(4)]
        await turns()
        with pytest.raises(OverloadedError, match="the queue is full"):
            await scheduler.run(job(5), lambda _: 0.5, GREEDY)
        modest = asyncio.create_task(scheduler.run(job(9), lambda _: 0.5, MODEST))
        await turns()
        with pytest.raises(OverloadedError, match="the queue is full"):
            await greedy[3]
        factory.made[0].finish()
        factory.made[0].finish()
        assert (await modest).outcome.tensors == b"\x09"
        await scheduler.close()
        await asyncio.gather(*greedy, return_exceptions=True)

    run(test())


# Deadlines.


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.floats(0.01, 1), st.one_of(st.just(math.inf), st.floats(0.01, 5)),
            st.floats(0, 0.5),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_what_was_taken_is_done_in_time_whoever_comes_later(arrivals: list[tuple[str, float, float, float]]) -> None:
    """A worker whose jobs take what was predicted, and jobs that come while it works, at most 0.5 s apart."""

    async def test() -> None:
        queue, now, free_at = JobQueue(1000), 0.0, 0.0

        def serve(until: float) -> None:
            nonlocal free_at
            while queue and free_at <= until:
                following = next(queue.next_jobs())
                taken = queue.pressing(free_at + following.predicted_seconds, 1.0) or following
                queue.take(taken)
                free_at += taken.predicted_seconds
                assert free_at <= taken.due + 1e-9

        for device, seconds, due, pause in arrivals:
            now += pause
            serve(now)
            free_at = max(free_at, now)
            each = queued(Owner("here", device), seconds=seconds)
            each.due = now + due
            if math.isinf(due) or queue.first_late(free_at, seconds, each.due, 1.0) <= 0:
                queue.append(each)
        serve(math.inf)
        assert not queue

    run(test())


def test_a_device_with_a_deadline_waits_for_its_turn_as_long_as_it_can() -> None:
    async def test() -> None:
        queue = JobQueue(100)
        for number in range(3):
            queue.append(queued(MODEST, number, seconds=0.1))
        urgent = queued(GREEDY, 9, seconds=0.1)
        urgent.due = 0.35
        queue.append(urgent)
        assert queue.pressing(0.2, 1.0) is None
        assert queue.pressing(0.3, 1.0) is urgent
        assert queue.lead_seconds(GREEDY) == pytest.approx(0.1)
        assert queue.lead_seconds(Owner("here", "new")) == 0
        queue.take(urgent)
        assert queue.due_seconds == 0
        assert numbers(queue) == [0, 1, 2]

    run(test())


def test_what_cannot_be_done_in_time_is_refused_at_once_and_says_when_to_come_back() -> None:
    async def test() -> None:
        factory = FakeWorkers()
        scheduler = Scheduler(factory, seats=1, queue_limit=100, preparations=(CANARY,))
        await scheduler.start()
        now = time.perf_counter()
        running = [asyncio.create_task(scheduler.run(job(n), lambda _: 0.5, GREEDY)) for n in range(3)]
        await turns()
        with pytest.raises(OverloadedError, match="no time") as refused:
            await scheduler.run(job(4), lambda _: 0.5, GREEDY, now + 1.0)
        assert refused.value.retry_after_seconds is not None
        assert 1.0 < refused.value.retry_after_seconds < 2.0
        with pytest.raises(OverloadedError, match="no time"):
            scheduler.check_owner(GREEDY, now + 1.0)
        scheduler.check_owner(MODEST, now + 1.0)
        await scheduler.close()
        await asyncio.gather(*running, return_exceptions=True)

    run(test())


def test_expired_jobs_and_jobs_that_nobody_waits_for_are_not_run() -> None:
    async def test() -> None:
        factory, dropped = FakeWorkers(), []
        scheduler = Scheduler(
            factory, seats=1, queue_limit=100, preparations=(CANARY,), on_dropped=lambda: dropped.append(1)
        )
        await scheduler.start()
        first = asyncio.create_task(scheduler.run(job(1), lambda _: 0.001))
        await turns()
        expiring = asyncio.create_task(scheduler.run(job(2), lambda _: 0.001, MODEST, time.perf_counter() + 0.05))
        leaving = asyncio.create_task(scheduler.run(job(3), lambda _: 0.001, MODEST))
        await turns()
        leaving.cancel()
        await asyncio.sleep(0.06)  # only time can let a deadline pass
        factory.made[0].finish()
        await first
        with pytest.raises(DeadlineError):
            await expiring
        assert not factory.made[0].running
        assert dropped == [1]
        started = asyncio.create_task(scheduler.run(job(4), lambda _: 0.001))
        await turns()
        started.cancel()
        await turns()
        assert [each.tensors[0].data[0] for each in factory.made[0].cancelled] == [4], "the worker is told"
        await scheduler.close()

    run(test())


# Workers that die and hang.


def test_without_a_worker_jobs_are_refused_until_there_is_one() -> None:
    async def test() -> None:
        scheduler = Scheduler(FakeWorkers(), seats=1, queue_limit=100)
        with pytest.raises(UnavailableError, match="no worker is there") as refused:
            scheduler.check_owner(MODEST, time.perf_counter() + 10)
        assert refused.value.retry_after_seconds is not None
        await scheduler.start()
        scheduler.check_owner(MODEST, time.perf_counter() + 10)
        await scheduler.close()

    run(test())


def test_a_worker_that_hangs_is_replaced_and_its_request_is_refused_after_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadpart_edge.scheduling.dispatcher._HUNG_SECONDS", 0.05)
    monkeypatch.setattr("loadpart_edge.scheduling.supervisor._LOOK_SECONDS", 0.01)

    async def test() -> None:
        factory, restarts = FakeWorkers(), []
        scheduler = Scheduler(
            factory, seats=1, queue_limit=100, preparations=(CANARY,), on_restart=lambda: restarts.append(1)
        )
        await scheduler.start()
        deadly = asyncio.create_task(scheduler.run(job(1), lambda _: 0.001))
        with pytest.raises(InternalError, match="workers died over this job"):
            await deadly
        assert restarts == [1, 1]
        with pytest.raises(InternalError, match="over this very request"):
            await scheduler.run(job(1), lambda _: 0.001)
        await until(lambda: scheduler.live_workers > 0)
        other = asyncio.create_task(scheduler.run(job(2), lambda _: 0.001))
        await until(lambda: bool(factory.made[-1].running))
        factory.made[-1].finish()
        assert (await other).outcome.tensors == b"\x02"
        await scheduler.close()

    run(test())


def test_a_seat_whose_worker_cannot_be_started_is_tried_again() -> None:
    class Failing(FakeWorkers):
        failures = 2

        async def start(self, seat: int) -> Any:
            if self.made and self.failures:
                self.failures -= 1
                raise OSError("no descriptors left")
            return await super().start(seat)

    async def test() -> None:
        factory = Failing()
        scheduler = Scheduler(factory, seats=1, queue_limit=100)
        await scheduler.start()
        factory.made[0].die()
        await until(lambda: len(factory.made) == 2)
        assert factory.failures == 0
        await scheduler.close()

    run(test())


# Tails that were not built ahead.


def wanting(owner: Owner, batch: int) -> QueuedJob:
    return QueuedJob(job()._replace(batch=batch), lambda _: 0.1, owner)


def made(batch: int) -> Preparation:
    return Preparation("digest", 0, 0, batch)


def test_building_for_one_device_takes_a_share_of_the_time_while_others_use_the_server() -> None:
    async def test() -> None:
        clock = Clock()
        builds = Builds(clock)
        builds.seen(GREEDY)
        builds.ask(wanting(GREEDY, 2), lambda: made(2))
        build = builds.take()
        assert build is not None
        assert build.preparation.batch == 2
        assert builds.done(build, 0.5)
        builds.ask(wanting(GREEDY, 3), lambda: made(3))
        assert builds.take() is not None, "it is alone: nobody waits for it"
        builds.seen(MODEST)
        assert builds.take() is None
        assert builds.seconds_until_next() == pytest.approx(0.5 / BUILD_SHARE - 0.5)
        clock.now += 4.6
        builds.seen(MODEST)
        assert builds.take() is not None

    run(test())


def test_tails_that_wait_to_be_built_are_bounded_and_forgotten_with_who_waited() -> None:
    async def test() -> None:
        builds = Builds(Clock())
        jobs = [wanting(GREEDY, batch) for batch in range(2, 6)]
        for batch, each in enumerate(jobs, 2):
            builds.ask(each, lambda batch=batch: made(batch))  # type: ignore[misc]
        with pytest.raises(OverloadedError, match="others are built before it") as refused:
            builds.ask(wanting(GREEDY, 99), lambda: made(99))
        assert refused.value.retry_after_seconds is not None
        builds.ask(wanting(MODEST, 2), lambda: made(2))
        assert len(builds) == 5
        for each in jobs:
            each.outcome.cancel()
        build = builds.take()
        assert build is not None
        assert [each.owner for each in build.waiting] == [MODEST]

    run(test())


def test_a_job_waits_for_its_tail_while_others_run() -> None:
    async def test() -> None:
        factory = FakeWorkers()
        scheduler = Scheduler(factory, seats=1, queue_limit=8, preparations=(CANARY,))
        await scheduler.start()
        (worker,) = factory.made
        first = asyncio.create_task(scheduler.run(job(1), lambda _: 0.1))
        await turns()
        other = asyncio.create_task(scheduler.run(job(2)._replace(batch=7), lambda _: 0.1, GREEDY))
        await turns()
        assert scheduler.queue_length == 1
        worker.finish()
        await first
        await turns()
        assert worker.prepared[-1] == Preparation("digest", 0, 0, 7)
        worker.finish()
        assert (await other).outcome.tensors == b"\x02"
        await scheduler.close()

    run(test())


# Bounds.


def test_a_quota_is_for_a_device_a_party_and_all() -> None:
    quota = Quota("calls", in_all=5, of_party=3, of_device=2)
    first, second, third = Owner("p", "1"), Owner("p", "2"), Owner("q", "1")
    quota.take(first, 2)
    with pytest.raises(OverloadedError, match="at most 2 calls of this device, got 3"):
        quota.take(first)
    quota.take(second)
    with pytest.raises(OverloadedError, match="at most 3 calls of this client, got 4"):
        quota.take(second)
    quota.take(third, 2)
    with pytest.raises(OverloadedError, match="at most 5 calls of all devices together, got 6"):
        quota.take(Owner("r"))
    assert quota.taken == 5
    quota.give(first, 2)
    quota.take(second)
    for owner, amount in ((second, 2), (third, 2)):
        quota.give(owner, amount)
    assert quota.taken == 0


def test_one_host_does_not_count_as_thousands_of_devices() -> None:
    devices = ActiveDevices(Clock())
    for number in range(1000):
        devices.seen(Owner("host", str(number)))
    devices.seen(Owner("other"))
    assert devices.count == MOST_OF_A_PARTY + 1


def test_refused_requests_come_back_spread_over_time_and_the_same_number_for_every_device() -> None:
    clock = Clock()
    pacing = Pacing(clock)
    greedy = [pacing.retry_seconds(GREEDY, 0.1, 0.03) for _ in range(10)]
    assert greedy == sorted(greedy)
    assert greedy[0] == pytest.approx(0.1)
    assert greedy[9] == pytest.approx(0.1 + 9 * 0.03 / 1.2)
    assert pacing.retry_seconds(MODEST, 0.1, 0.03) == pytest.approx(0.1), "it does not wait for the other's requests"
    assert pacing.retry_seconds(GREEDY, 0.1, 0.03) == pytest.approx(greedy[9] + 2 * 0.03 / 1.2), "two share the server"
    assert pacing.retry_seconds(GREEDY, 100.0, 0.03) == 10.0
    clock.now += 100
    assert pacing.retry_seconds(GREEDY, 0.0, 0.03) == pytest.approx(0.05)
