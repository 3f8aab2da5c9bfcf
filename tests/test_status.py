"""The status board by itself, with a scheduler that has no workers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from loadpart.v1 import offload_pb2
from loadpart_common.store.model_store import ModelStore
from loadpart_edge.scheduling.scheduler import Scheduler
from loadpart_edge.scheduling.status import StatusBoard
from loadpart_edge.served_models import ServedModels
from loadpart_edge.settings import load_settings

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_canary_lets_the_slow_down_fall_when_no_tail_runs(store: Path) -> None:
    """A real worker, which nobody asks for anything after it was slow."""

    async def run() -> tuple[float, float]:
        settings = load_settings({"store": store, "models": "tiny", "workers": 1, "threads": 1})
        canary = ServedModels(ModelStore(store), settings).canary()
        scheduler = Scheduler(settings, [canary], canary=canary, on_prepared=lambda _what, _prepared: None)
        try:
            await scheduler.start()
            for _ in range(3):
                scheduler.slow_down.record(1.0, 50.0)
            before = scheduler.slow_down.value
            fallen = asyncio.Event()
            scheduler.on_change = lambda: fallen.set() if scheduler.slow_down.value < 5 else None
            async with asyncio.timeout(20):
                await fallen.wait()
        finally:
            await scheduler.close()
        return before, scheduler.slow_down.value

    before, after = asyncio.run(run())
    assert before == 50
    assert after < 5


def test_active_devices_and_a_change_of_the_models_are_told() -> None:
    version = 1
    scheduler = Scheduler(load_settings({}), [], on_prepared=lambda _what, _prepared: None)

    async def run() -> None:
        nonlocal version
        status = StatusBoard(scheduler, 60, lambda: version)
        assert (status.current().active_devices, status.current().models_version) == (0, 1)
        for peer in ("a", "b", "a"):
            status.devices.seen(peer)
        version = 2
        assert (status.current().active_devices, status.current().models_version) == (2, 2)

    asyncio.run(run())
