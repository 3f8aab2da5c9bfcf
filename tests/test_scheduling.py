"""The scheduler's parts, with fake workers that have no process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from loadpart_common.errors import InputError, InternalError, ModelError, OverloadedError
from loadpart_edge.scheduling.builds import Builds
from loadpart_edge.scheduling.canary import Canary
from loadpart_edge.scheduling.deferred import Deferred
from loadpart_edge.scheduling.dispatcher import Dispatcher
from loadpart_edge.scheduling.hosts import MOST_KEPT, Host, Hosts
from loadpart_edge.scheduling.job import ANYWHERE, Owner, QueuedJob, Tail
from loadpart_edge.scheduling.queue import JobQueue
from loadpart_edge.scheduling.scheduler import Scheduler
from loadpart_edge.scheduling.staffing import Staffing
from loadpart_edge.scheduling.supervisor import Supervisor
from loadpart_edge.workers.base import Outcome, Preparation, Prepared
from tests.fakes import CANARY, FakeWorker, FakeWorkers, job, until
from tests.support import Clock

if TYPE_CHECKING:
    from collections.abc import Coroutine


def run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a test on an event loop, for five seconds at most."""

    async def bounded() -> None:
        async with asyncio.timeout(5):
            await work

    asyncio.run(bounded())


def queued(number: int = 0, seconds: float = 0.1) -> QueuedJob:
    return QueuedJob(job(number), lambda host: seconds * (2 if host == "slow" else 1))


async def turns(number: int = 5) -> None:
    """Lets the event loop run `number` iterations."""
    for _ in range(number):
        await asyncio.sleep(0)


# The queue.


def test_the_queue_is_first_in_first_out_and_bounded() -> None:
    async def test() -> None:
        queue = JobQueue(2)
        first, second = queued(1), queued(2)
        queue.append(first)
        queue.append(second)
        assert queue.is_full
        assert queue.predicted_seconds == pytest.approx(0.2)
        assert queue.pop() is first
        assert (first.is_waiting, second.is_waiting) == (False, True)
        queue.put_back(first)
        assert queue.drain() == [first, second]

    run(test())


def test_a_job_is_predicted_for_the_host_that_takes_it() -> None:
    async def test() -> None:
        waiting = queued()
        waiting.start("fake")
        assert waiting.predicted_seconds == pytest.approx(0.1)
        waiting.start("slow")
        assert waiting.predicted_seconds == pytest.approx(0.2)
        assert waiting.attempts == 2

    run(test())


# The dispatcher.


class Bench:
    """A dispatcher whose seats have fake workers."""

    def __init__(self, seats: int = 1, capacity: int = 1, preparations: tuple[Preparation, ...] = ()) -> None:
        self.queue, self.hosts = JobQueue(8), Hosts()
        self.builds = Builds()
        self.dispatcher = Dispatcher(self.queue, self.builds, self.hosts, Deferred(), seats, preparations)
        self.workers = [FakeWorker(index, "fake", capacity) for index in range(seats)]

    def fill(self) -> None:
        for seat, worker in zip(self.dispatcher.seats, self.workers, strict=True):
            self.dispatcher.fill(seat, worker)

    def submit(self, *numbers: int) -> list[QueuedJob]:
        jobs = [queued(number) for number in numbers]
        for each in jobs:
            self.queue.append(each)
        self.dispatcher.dispatch()
        return jobs


def test_jobs_go_to_idle_workers_and_outcomes_to_who_waits() -> None:
    async def test() -> None:
        bench = Bench(seats=2)
        bench.fill()
        jobs = bench.submit(1, 2, 3)
        assert [len(worker.running) for worker in bench.workers] == [1, 1]
        assert len(bench.queue) == 1
        bench.workers[1].finish()
        assert jobs[1].outcome.result().tensors == b"\x02"
        assert bench.workers[1].running[0][0] is jobs[2].job, "the idle worker gets the next job at once"
        bench.workers[0].finish(InputError("not this"))
        with pytest.raises(InputError, match="not this"):
            jobs[0].outcome.result()
        assert bench.dispatcher.running == {jobs[2]}

    run(test())


def test_what_dispatching_takes_beyond_running_is_known() -> None:
    async def test() -> None:
        bench = Bench()
        bench.fill()
        assert bench.hosts.dispatch_seconds == 0
        for number in range(3):
            bench.submit(number)
            await asyncio.sleep(0.03)
            bench.workers[0].finish()  # with a tail of 10 ms
        await until(lambda: 0.015 < bench.hosts.dispatch_seconds < 0.2)

    run(test())


def test_a_worker_that_has_no_core_gets_more_time_and_one_that_has_does_not() -> None:
    async def test() -> None:
        bench = Bench()
        bench.fill()
        bench.submit(1)
        (seat,), (worker,) = bench.dispatcher.seats, bench.workers
        due = seat.due_at
        assert due is not None
        worker.starved = 10.0
        assert bench.dispatcher.kill_hung(due - 0.1, 0.25) == []
        assert seat.due_at == due, "what it waited for before this job does not count"
        worker.starved = 0.2
        assert bench.dispatcher.kill_hung(due + 0.15, 0.25) == []
        worker.starved = 0.0
        assert bench.dispatcher.kill_hung(due + 0.25, 0.25) == [worker]

    run(test())


def test_a_worker_takes_as_many_jobs_as_its_capacity() -> None:
    async def test() -> None:
        bench = Bench(capacity=3)
        assert bench.dispatcher.capacity == 1
        bench.fill()
        assert bench.dispatcher.capacity == 3, "of the workers that are there"
        bench.submit(1, 2, 3, 4)
        assert len(bench.workers[0].running) == 3
        assert len(bench.queue) == 1

    run(test())


def test_a_job_of_a_lost_worker_goes_to_another_and_is_given_up_after_two() -> None:
    async def test() -> None:
        bench = Bench()
        bench.fill()
        first, second = bench.submit(1, 2)
        for _ in range(2):
            assert not first.outcome.done()
            bench.dispatcher.vacate(bench.dispatcher.seats[0])
            bench.workers = [FakeWorker(0, "fake", 1)]
            bench.fill()
        with pytest.raises(InternalError, match="workers died over this job"):
            first.outcome.result()
        assert bench.workers[0].running[0][0] is second.job

    run(test())


def test_jobs_of_a_lost_worker_keep_their_order_and_its_late_answers_are_ignored() -> None:
    async def test() -> None:
        bench = Bench(capacity=3)
        bench.fill()
        jobs = bench.submit(1, 2, 3)
        lost = bench.workers[0]
        bench.dispatcher.vacate(bench.dispatcher.seats[0])
        bench.workers = [FakeWorker(0, "fake", 1)]
        bench.fill()
        assert [each.job for each in jobs[:1]] == [running for running, _ in bench.workers[0].running]
        lost.finish()
        assert not jobs[0].outcome.done()
        assert bench.dispatcher.running == {jobs[0]}
        for number in (1, 2, 3):
            bench.workers[0].finish()
            assert jobs[number - 1].outcome.result().tensors == bytes([number])

    run(test())


def test_a_job_that_no_worker_can_take_fails_and_the_next_one_runs() -> None:
    async def test() -> None:
        bench = Bench()
        bench.fill()
        bench.workers[0].refusal = ModelError("too large")
        (refused,) = bench.submit(1)
        with pytest.raises(ModelError, match="too large"):
            refused.outcome.result()
        bench.workers[0].refusal = None
        bench.submit(2)
        assert len(bench.workers[0].running) == 1

    run(test())


def test_tails_are_built_when_there_is_no_job() -> None:
    async def test() -> None:
        tails = tuple(Preparation("digest", cut) for cut in range(2))
        bench = Bench(preparations=tails)
        told: list[tuple[str, Preparation, Prepared]] = []
        bench.dispatcher.on_prepared = lambda worker, tail, answer: told.append((worker.label, tail, answer))
        bench.fill()
        jobs = bench.submit(1)
        await turns()
        assert bench.workers[0].prepared == [tails[0]], "the job runs before the second tail is built"
        assert bench.dispatcher.prepared_workers == 0
        bench.workers[0].finish()
        await turns()
        assert bench.dispatcher.prepared_workers == 1
        assert [(label, tail) for label, tail, _ in told] == [("fake-0", tails[0]), ("fake-0", tails[1])]
        assert jobs[0].outcome.done()

    run(test())


def test_only_an_idle_worker_of_the_host_times_a_tail() -> None:
    async def test() -> None:
        bench = Bench()
        assert await bench.dispatcher.prepare_when_idle("fake", CANARY) is None
        bench.fill()
        assert await bench.dispatcher.prepare_when_idle("other", CANARY) is None
        assert await bench.dispatcher.prepare_when_idle("fake", CANARY) == Prepared(0.02, 1000)
        bench.submit(1)
        assert await bench.dispatcher.prepare_when_idle("fake", CANARY) is None

    run(test())


# Hosts.


def test_every_host_has_a_slow_down_of_its_own() -> None:
    hosts = Hosts()
    told: list[dict[str, float]] = []
    hosts.on_shares = lambda shares: told.append(dict(shares))
    assert hosts.slow_down == 1
    for name in ("quick", "slow"):
        hosts.joined(name)
    for _ in range(3):
        hosts["quick"].slow_down.record(1.0, 1.0)
        hosts["slow"].slow_down.record(1.0, 3.0)
    assert hosts["slow"].slow_down.value == pytest.approx(3)
    assert hosts.slow_down == pytest.approx(2)
    hosts.measured("quick", 0.01)
    hosts.measured("slow", 0.03)
    assert told[-1] == pytest.approx({"quick": 0.75, "slow": 0.25}), "as many jobs as it can do"
    assert hosts.slow_down == pytest.approx(1.5)
    hosts.left("quick")
    assert hosts.slow_down == pytest.approx(3), "where no worker is, no job goes"
    hosts.left("slow")
    assert hosts.slow_down == pytest.approx(3), "until one comes back"


def test_machines_that_come_and_go_are_not_remembered_for_ever() -> None:
    hosts = Hosts()
    hosts.joined("stays")
    for number in range(1000):
        hosts.joined(f"host-{number}")
        hosts.left(f"host-{number}")
    assert len(hosts._by_name) <= MOST_KEPT + 1
    assert hosts.shares == {"stays": 1.0}


def test_nothing_is_timed_on_machines_that_are_forgotten() -> None:
    async def test() -> None:
        factory = FakeWorkers(hosts=tuple(f"host-{number}" for number in range(MOST_KEPT + 2)))
        scheduler = Scheduler(factory, seats=MOST_KEPT + 1, queue_limit=8, preparations=(CANARY,), canary=CANARY)
        await scheduler.start()
        assert len(scheduler._canaries) == MOST_KEPT + 1
        scheduler.resize(1)
        await until(lambda: scheduler.live_workers == 1 and len(scheduler._canaries) <= MOST_KEPT)
        assert set(scheduler._canaries) == set(scheduler.hosts._by_name)
        await scheduler.close()

    run(test())


def two_hosts(**seconds: float) -> tuple[Bench, list[QueuedJob]]:
    """A quick and a slow worker, the slow one in the first seat, and jobs that take so long on each."""
    bench = Bench(seats=2)
    bench.workers = [FakeWorker(0, "slow", 1), FakeWorker(1, "quick", 1)]
    bench.fill()
    for seat in bench.dispatcher.seats:
        seat.built.add(Tail("digest", 0, 1))
    jobs = [QueuedJob(job(number), lambda host: seconds.get(host, 0.1), Owner("", str(number))) for number in range(3)]
    for each in jobs:
        bench.queue.append(each)
        bench.dispatcher.dispatch()
    return bench, jobs


def test_a_job_goes_where_it_will_be_done_first() -> None:
    async def test() -> None:
        bench, jobs = two_hosts(quick=0.1, slow=0.25)
        slow, quick = bench.workers
        assert [quick.running[0][0], slow.running[0][0]] == [jobs[0].job, jobs[2].job], (
            "the first goes to the quick one, the second waits for it, and the third would wait for two"
        )
        quick.finish()
        assert quick.running[0][0] is jobs[1].job
        bench.dispatcher.vacate(bench.dispatcher.seats[1])
        slow.finish()
        assert slow.running[0][0] is jobs[1].job, "a worker that is lost is not waited for"

    run(test())


def test_a_job_does_not_wait_for_a_quick_worker_that_is_late() -> None:
    async def test() -> None:
        bench, jobs = two_hosts(quick=0.02, slow=0.5)
        slow, quick = bench.workers
        assert quick.running
        assert not slow.running
        await until(lambda: bool(slow.running))  # 20 ms were predicted, and half a second has nearly passed
        assert quick.running[0][0] is jobs[0].job

    run(test())


def test_seats_are_added_and_given_up_and_nothing_is_lost() -> None:
    async def test() -> None:
        factory = FakeWorkers(hosts=("slow", "quick", "fresh"))
        scheduler = Scheduler(factory, seats=1, queue_limit=8, preparations=(CANARY,))
        await scheduler.start()
        scheduler.resize(3)
        await until(lambda: scheduler.live_workers == 3)
        for _ in range(3):
            scheduler.hosts["slow"].slow_down.record(1.0, 3.0)
        running = [asyncio.create_task(scheduler.run(job(number), lambda _: 0.1)) for number in range(3)]
        await until(lambda: scheduler.running == 3)
        scheduler.resize(2)
        slow = next(worker for worker in factory.made if worker.host == "slow")
        waiting = asyncio.create_task(scheduler.run(job(3), lambda _: 0.1))
        await turns()
        assert not slow.is_closed, "it ends what it does"
        slow.finish()
        await until(lambda: slow.is_closed)
        assert scheduler.live_workers == 2
        assert scheduler.queue_length == 1, "and gets nothing more"
        for worker in factory.made:
            while worker.running:
                worker.finish()
                await turns()
        assert {bytes((await each).outcome.tensors) for each in (*running, waiting)} == {bytes([n]) for n in range(4)}
        scheduler.resize(0)
        await until(lambda: scheduler.live_workers == 0)
        assert all(worker.is_closed for worker in factory.made)
        scheduler.resize(1)
        await until(lambda: scheduler.live_workers == 1)
        await scheduler.close()
        assert len(factory.made) == 4
        assert factory.made[3].is_closed

    run(test())


def test_a_worker_whose_machine_is_taken_away_is_replaced_when_it_has_done_what_it_had() -> None:
    async def test() -> None:
        factory, restarts = FakeWorkers(), []
        scheduler = Scheduler(
            factory, seats=1, queue_limit=8, preparations=(CANARY,), on_restart=lambda: restarts.append(1)
        )
        await scheduler.start()
        first, second = (asyncio.create_task(scheduler.run(job(number), lambda _: 0.1)) for number in (1, 2))
        await turns()
        factory.made[0].leaving.set_result(None)
        await turns()
        factory.made[0].finish()
        assert (await first).outcome.tensors == b"\x01"
        await until(lambda: len(factory.made) == 2 and bool(factory.made[1].running))
        factory.made[1].finish()
        assert (await second).outcome.tensors == b"\x02"
        assert restarts == [], "nothing has failed"
        await scheduler.close()

    run(test())


@pytest.mark.parametrize("way", ["the daemon ends", "there are to be fewer"])
def test_a_seat_whose_worker_takes_long_to_leave_may_be_given_up(way: str) -> None:
    async def test() -> None:
        factory = FakeWorkers()
        scheduler = Scheduler(factory, seats=1, queue_limit=8, preparations=(CANARY,))
        await scheduler.start()
        (leaving,) = factory.made
        leaving.may_close.clear()
        leaving.leaving.set_result(None)
        await until(lambda: leaving.is_closed)
        (keeper,) = scheduler._supervisor._tasks.values()
        ending = asyncio.create_task(scheduler.close()) if way == "the daemon ends" else None
        if ending is None:
            scheduler.resize(0)
        await turns()
        leaving.may_close.set()
        await until(keeper.done)
        assert keeper.cancelled(), "it has ended, and as it was told to"
        await (ending or scheduler.close())
        assert factory.made == [leaving], "no other one is started"

    run(test())


def test_who_leaves_anyway_is_given_up_first() -> None:
    async def test() -> None:
        factory = FakeWorkers(hosts=("slow", "quick"))
        scheduler = Scheduler(factory, seats=2, queue_limit=8, preparations=(CANARY,))
        await scheduler.start()
        scheduler.hosts["slow"].slow_down.record(1.0, 3.0)
        running = [asyncio.create_task(scheduler.run(job(number), lambda _: 0.1)) for number in range(2)]
        await until(lambda: scheduler.running == 2)
        slow, quick = sorted(factory.made, key=lambda worker: worker.host == "quick")
        quick.leaving.set_result(None)
        await turns()
        scheduler.resize(1)
        slow.finish()
        quick.finish()
        await asyncio.gather(*running)
        await until(lambda: quick.is_closed)
        await turns()
        assert not slow.is_closed
        assert len(factory.made) == 2
        await scheduler.close()

    run(test())


def test_a_scheduler_may_be_ready_with_the_first_worker_whenever_it_comes() -> None:
    async def test() -> None:
        arrived = asyncio.Event()

        class Late(FakeWorkers):
            async def start(self, seat: int) -> FakeWorker:
                if not arrived.is_set() and seat == 0:
                    raise OSError("no machine yet")
                await arrived.wait()
                return await super().start(seat)

        factory = Late()
        scheduler = Scheduler(factory, seats=2, queue_limit=8, preparations=(CANARY,), waits_for_all=False)
        starting = asyncio.create_task(scheduler.start())
        await turns()
        assert not starting.done()
        scheduler.resize(1)  # the seat whose worker is awaited is given up
        arrived.set()
        await starting
        assert scheduler.live_workers == 1
        await scheduler.close()

    run(test())


# How many workers.


def test_more_workers_are_wanted_at_once_and_fewer_after_a_while() -> None:
    clock = Clock()
    staffing = Staffing(1, 4, 60.0, clock)
    assert staffing.wanted(0.0, 0.0) == 1
    assert staffing.wanted(1.0, 0.0) == 2, "one that is always busy leaves no room"
    assert staffing.wanted(1.0, 1.5) == 4, "and so do those that wait"
    assert staffing.wanted(1.0, 100.0) == 4, "never more than allowed"
    clock.now += 59.0
    assert staffing.wanted(0.5, 0.0) == 4
    clock.now += 2.0
    assert staffing.wanted(0.5, 0.0) == 1
    assert staffing.wanted(1.3, 0.0) == 2


# The supervisor.


def test_a_worker_that_dies_is_replaced_and_counted() -> None:
    async def test() -> None:
        bench, factory, restarts = Bench(), FakeWorkers(), []
        prepared = asyncio.Event()
        supervisor = Supervisor(bench.dispatcher, factory, lambda: restarts.append(1))
        bench.dispatcher.on_change = lambda: prepared.set() if bench.dispatcher.prepared_workers else None
        await supervisor.start(prepared)
        (waiting,) = bench.submit(1)
        factory.made[0].die()
        await turns()
        assert restarts == [1]
        assert factory.made[0].is_closed
        factory.made[1].finish()
        assert waiting.outcome.result().tensors == b"\x01"
        await supervisor.close()
        assert factory.made[1].is_closed

    run(test())


def test_a_worker_that_dies_while_it_starts_ends_the_daemon() -> None:
    async def test() -> None:
        bench, factory = Bench(preparations=(CANARY,)), FakeWorkers()
        supervisor = Supervisor(bench.dispatcher, factory, lambda: None)
        starting = asyncio.create_task(supervisor.start(asyncio.Event()))
        await turns(2)
        factory.made[0].die()
        with pytest.raises(InternalError, match="worker fake-0 died while it started"):
            await starting
        await supervisor.close()

    run(test())


# The canary.


def test_a_canary_runs_in_a_row_while_its_host_is_slow_and_seldom_otherwise() -> None:
    async def test() -> None:
        host, slept, took = Host("fake"), [], [0.02]
        host.canary_seconds = 0.02
        done = asyncio.Event()
        rows: list[int] = []

        async def once() -> Prepared | None:
            rows[-1] += 1
            return Prepared(took[0], 0)

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            rows.append(0)
            if len(slept) == 5:
                took[0] = 0.06
            if len(slept) == 9:
                done.set()
                await asyncio.Event().wait()

        keeping = asyncio.create_task(Canary(host, once, lambda: None, sleep).keep())
        await done.wait()
        keeping.cancel()
        assert slept[:4] == [0.3] * 4, "the first runs measure how long it takes"
        assert slept[4] == pytest.approx(0.3)
        assert host.slow_down.value == pytest.approx(3, rel=0.01)

    run(test())


# All together.


def test_the_scheduler_runs_jobs_and_tells_the_backlog() -> None:
    async def test() -> None:
        factory = FakeWorkers()
        scheduler = Scheduler(factory, seats=1, queue_limit=1, preparations=(CANARY,))
        await scheduler.start()
        assert scheduler.backlog_seconds == 0
        running = [asyncio.create_task(scheduler.run(job(number), lambda _: 0.5)) for number in (1, 2)]
        await turns()
        assert (scheduler.running, scheduler.queue_length) == (1, 1)
        assert scheduler.backlog_seconds == pytest.approx(1.0, abs=0.1)
        with pytest.raises(OverloadedError, match="the queue is full") as raised:
            await scheduler.run(job(3), lambda _: 0.5)
        assert raised.value.retry_after_seconds == pytest.approx(1.0, abs=0.1)
        running[1].cancel()
        await turns()
        assert scheduler.queue_length == 0, "a cancelled job leaves the queue"
        factory.made[0].finish()
        served = await running[0]
        assert served.outcome.tensors == b"\x01"
        assert served.host == "fake"
        await scheduler.drained()
        await scheduler.close()

    run(test())


def test_hosts_may_differ() -> None:
    async def test() -> None:
        factory = FakeWorkers(hosts=("quick", "slow"))
        scheduler = Scheduler(factory, seats=2, queue_limit=8, preparations=(CANARY,))
        await scheduler.start()
        predict = {"quick": 0.01, "slow": 0.012, ANYWHERE: 0.011}.__getitem__
        running = [asyncio.create_task(scheduler.run(job(number), predict)) for number in range(2)]
        await turns()
        changed = asyncio.Event()
        scheduler.on_change = changed.set
        for worker in factory.made:
            worker.finish(Outcome(b"", 0.05, 0.0))
        assert {(await each).host for each in running} == {"quick", "slow"}
        await changed.wait()
        assert scheduler.hosts["quick"].slow_down.value == pytest.approx(5)
        assert scheduler.hosts["slow"].slow_down.value == pytest.approx(0.05 / 0.012)
        await scheduler.close()

    run(test())


def test_jobs_that_are_left_at_the_end_fail() -> None:
    async def test() -> None:
        scheduler = Scheduler(FakeWorkers(), seats=1, queue_limit=8)
        await scheduler.start()
        running = [asyncio.create_task(scheduler.run(job(number), lambda _: 0.5)) for number in range(3)]
        await turns()
        await scheduler.close()
        for each in running:
            with pytest.raises(InternalError, match="shut down"):
                await each

    run(test())
