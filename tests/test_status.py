"""The status board by itself, with a scheduler that has no workers."""

from __future__ import annotations

import asyncio

import pytest

from loadpart.v1 import offload_pb2
from loadpart_edge.scheduler import Scheduler
from loadpart_edge.settings import load_settings
from loadpart_edge.status import StatusBoard


def board() -> StatusBoard:
    scheduler = Scheduler(load_settings({}), [], on_prepared=lambda _what, _prepared: None)
    return StatusBoard(scheduler, period_seconds=60)


@pytest.mark.parametrize("turns", range(8))
def test_closing_ends_it_however_soon_after_a_change(turns: int) -> None:
    async def run() -> None:
        status = board()
        status.start()
        await asyncio.sleep(0.06)  # past the least gap, into the wait for a change
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
