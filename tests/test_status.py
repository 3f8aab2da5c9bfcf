"""The status board by itself, with a scheduler that has no workers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from loadpart.v1 import offload_pb2
from loadpart_edge.scheduling.job import Owner
from loadpart_edge.scheduling.scheduler import Scheduler
from loadpart_edge.scheduling.status import StatusBoard
from tests.fakes import CANARY, FakeWorkers

if TYPE_CHECKING:
    from collections.abc import Callable


def board(models_version: Callable[[], int] = lambda: 0) -> StatusBoard:
    return StatusBoard(Scheduler(FakeWorkers(), seats=1, queue_limit=8), 60, models_version)


@pytest.mark.parametrize("turns", range(8))
def test_closing_ends_it_however_soon_after_a_change(turns: int) -> None:
    async def run() -> None:
        status = board()
        status.start()
        await asyncio.sleep(0.06)  # after the least gap, while it waits for a change
        status.draining = True
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await status.close()

    asyncio.run(run())


def test_watchers_get_the_status_now_then_changes_and_then_the_end() -> None:
    async def run() -> list[bool]:
        status = board()
        status.start()
        seen: list[bool] = []
        told = asyncio.Event()

        async def watch() -> None:
            async for written in status.watch():
                each = offload_pb2.WatchStatusResponse.FromString(written).status
                seen.append(each.draining)
                if each.draining:
                    told.set()

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0)
        status.draining = True
        async with asyncio.timeout(5):
            await told.wait()
            await status.close()
            await watching
        return seen

    seen = asyncio.run(run())
    assert seen[0] is False
    assert seen[-1] is True


def test_a_canary_lets_the_slow_down_fall_when_no_tail_runs() -> None:
    """A worker was slow, then gets no more requests."""

    async def run() -> tuple[float, float]:
        scheduler = Scheduler(FakeWorkers(), seats=1, queue_limit=8, preparations=[CANARY], canary=CANARY)
        try:
            await scheduler.start()
            for _ in range(3):
                scheduler.hosts["fake"].slow_down.record(1.0, 50.0)
            before = scheduler.slow_down
            fallen = asyncio.Event()
            scheduler.on_change = lambda: fallen.set() if scheduler.slow_down < 5 else None
            async with asyncio.timeout(20):
                await fallen.wait()
        finally:
            await scheduler.close()
        return before, scheduler.slow_down

    before, after = asyncio.run(run())
    assert before == 50
    assert after < 5


def test_active_devices_and_a_change_of_the_models_are_told() -> None:
    version = 1

    async def run() -> None:
        nonlocal version
        status = board(lambda: version)
        assert (status.current().active_devices, status.current().models_version) == (0, 1)
        for device in ("a", "b", "a"):
            status.devices.seen(Owner("host", device))
        version = 2
        assert (status.current().active_devices, status.current().models_version) == (2, 2)

    asyncio.run(run())
