from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from loadpart_common import machine

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("bound", "cores"),
    [("max 100000", 8), ("50000 100000", 1), ("250000 100000", 2), ("400000 100000", 4), ("9000000 100000", 8)],
)
def test_a_bound_on_the_time_of_a_container_bounds_its_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(f"{bound}\n")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.usable_cores() == cores


def test_without_control_groups_the_cores_are_those_that_it_may_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "none")
    assert machine.usable_cores() == len(os.sched_getaffinity(0))
