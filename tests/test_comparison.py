"""The comparison's grid, figures and report; the measuring itself is only tested by running the benchmark."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import astuple, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from benchmarks.comparison import analysis, grid, report, traces
from benchmarks.comparison.grid import IDLE, Condition, Load
from benchmarks.comparison.others import first_frames
from benchmarks.comparison.records import Measured, Moment, Sample, Traced, Writer, read
from benchmarks.daemon import Daemon, daemon, metric

from tests.support import eventually, rests

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WHOLE = 50
CONDITION = Condition("squeezenet", 16, 4, Load("clients", 0.9))


def samples(seconds: Sequence[float], cut: int, megabits: float | None = None) -> list[Sample]:
    return [Sample(each, cut, 0.1, 0.2, 0.1, each * 0.9, megabits) for each in seconds]


def measured(condition: Condition = CONDITION, load_aware: float = 0.1, cut: int = WHOLE) -> Measured:
    noise = np.random.default_rng(0).normal(1, 0.02, 20)
    arms = {
        "local": samples(0.1 * noise, WHOLE),
        "offload": samples(0.4 * noise, 0),
        "cut 7": samples(0.3 * noise, 7),
        "bandwidth-only": samples(0.4 * noise, 0),
        "paper": samples(0.2 * noise, 0),
        "load-aware": samples(load_aware * noise, cut),
    }
    return Measured(condition, WHOLE, 4.1, 1.1, 0.3, arms)


def test_the_balanced_grid_is_balanced() -> None:
    conditions = grid.balanced()
    assert len(set(conditions)) == len(conditions) == len(grid.NETWORKS) * len(grid.MEGABITS)
    assert set(conditions) <= set(grid.full())
    for values in (
        [each.network for each in conditions],
        [each.megabits for each in conditions],
        [each.load.level for each in conditions],
        [each.slow_down for each in conditions],
        [each.load.source for each in conditions if each.load.level],
        [each.load for each in conditions if each.load.level],
    ):
        assert len(set(Counter(values).values())) == 1, Counter(values)
    for attribute in ("network", "megabits"):
        pairs = Counter((getattr(each, attribute), each.load.level) for each in conditions)
        assert set(pairs.values()) == {1}, "no bandwidth and no network occurs twice with the same level"
        slow = Counter((getattr(each, attribute), each.slow_down) for each in conditions)
        assert max(slow.values()) - min(slow.values()) <= 1


def test_the_full_grid_has_every_combination_once() -> None:
    conditions = grid.full()
    assert len(set(conditions)) == len(conditions) == 6 * 7 * 2 * 13


def test_a_device_is_set_up_once() -> None:
    for conditions in (grid.balanced(), grid.quick()):
        devices = [(each.network, each.slow_down) for each in conditions]
        changes = sum(before != after for before, after in pairwise(devices))
        assert changes == len(set(devices)) - 1


@pytest.mark.parametrize("trace", [*traces.full(), *traces.quick()], ids=str)
def test_traces_are_in_order_and_within_bounds(trace: traces.Trace) -> None:
    times = [at for at, _, _ in trace.world]
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] < trace.seconds
    assert all(1 <= megabits <= 64 for _, megabits, _ in trace.world)
    assert trace in (*traces.full(), *traces.quick()), "a trace is the same each time it is made"


def test_results_are_read_as_written_and_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    traced = Traced(
        "steps", "squeezenet", WHOLE, 4.0, [(0.0, 8.0, IDLE)], [Moment(1.0, "local", *samples([0.5], WHOLE))]
    )
    for number in range(2):  # as when the benchmark is stopped and resumed
        writer = Writer(path)
        writer.how(machine="one", part=number)
        writer.measured(replace(measured(), device_factor=4.0 + number))
        writer.traced(traced)
        writer.close()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "condition", "arms"')
    results = read(path)
    Writer(path).close()
    assert read(path) == results
    assert path.read_text(encoding="utf-8").endswith("\n"), "the next record starts on a new line"
    assert results.how == {"machine": "one", "part": 1}
    assert [each.device_factor for each in results.measured] == [4.0, 5.0]
    assert results.traced == [traced, traced]
    assert results.measured[0].condition == CONDITION
    for arm, expected in measured().arms.items():
        got = [astuple(sample) for sample in results.measured[0].arms[arm]]
        assert got == [pytest.approx(astuple(sample), abs=1e-6) for sample in expected]


@pytest.mark.parametrize(
    "line", ["nothing", "{}", '{"kind": "condition", "format": 1}', '{"kind": "how", "format": 2}']
)
def test_what_is_no_result_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f'{line}\n{{"kind": "how", "format": 1}}\n')
    with pytest.raises(ValueError, match="line 1: not a result"):
        read(path)


def test_figures() -> None:
    each = measured(load_aware=0.11)
    decided = analysis.by_decision(each)
    assert analysis.oracle(decided) == analysis.oracle(each) == "local"
    assert analysis.regret(each) == pytest.approx(0.1)
    assert analysis.regret(decided) == 0.0, "load-aware took the best cut"
    assert analysis.reduction(each, "bandwidth-only") == pytest.approx(1 - 0.11 / 0.4)
    here, there = (0.1 + 0.11) / 2, (0.4 + 0.4 + 0.2) / 3
    assert analysis.reduction(decided, "bandwidth-only") == pytest.approx(1 - here / there)
    middle, low, high = analysis.median(each, "offload")
    assert low < middle < high
    assert middle == pytest.approx(0.4, rel=0.02)
    assert analysis.ratio_interval(each, "offload", "local") == pytest.approx((4.0, 4.0))


def test_a_decision_costs_what_its_cut_took_in_that_round() -> None:
    arms = {
        "local": samples([1.0, 2.0], WHOLE),
        "offload": samples([4.0, 6.0], 0),
        "load-aware": [*samples([3.0], WHOLE), *samples([8.0], 0)],
    }
    each = Measured(CONDITION, WHOLE, 4.1, 1.1, 0.3, arms)
    decided = analysis.by_decision(each)
    assert list(analysis.totals(decided.arms["load-aware"])) == [2.0, 7.0]
    assert list(analysis.totals(decided.arms["local"])) == [2.0, 2.0]
    assert list(analysis.totals(each.arms["load-aware"])) == [3.0, 8.0]


def test_losses_are_told_with_a_reason() -> None:
    results = [measured(), measured(load_aware=0.3, cut=0), measured(load_aware=0.12)]
    decided = [analysis.by_decision(each) for each in results]
    assert [loss.measured for loss in analysis.losses(decided)] == decided[1:2]
    first, second = analysis.losses(results)
    assert first.share == pytest.approx(2.0)
    assert first.better == "local"
    assert "took cuts 0 (20); the others' inferences +200%; predicted over measured 0.90" in first.reason
    assert second.share == pytest.approx(0.2)
    assert "noise" in second.reason
    assert second.low == pytest.approx(0.2)


def phase(start: float, local: float, offload: float, taken: Sequence[tuple[int, float]]) -> list[Moment]:
    """Moments of a phase of a trace.

    `taken` has, for each inference of load-aware, the cut that it took and its estimate of the rate.
    """
    moments = []
    for number, (cut, megabits) in enumerate(taken):
        at = start + number
        moments += [
            Moment(at, "local", *samples([local], WHOLE)),
            Moment(at + 0.3, "offload", *samples([offload], 0)),
            Moment(at + 0.6, "load-aware", *samples([local if cut else offload], cut, megabits)),
        ]
    return moments


def test_a_change_counts_from_when_it_could_be_known() -> None:
    world = [(0.0, 32.0, IDLE), (5.0, 4.0, IDLE), (15.0, 32.0, IDLE), (25.0, 32.0, Load("outside", 2.0))]
    moments = [
        *phase(0, 0.2, 0.1, [(0, 32.0)] * 5),
        *phase(5, 0.2, 0.4, [(0, 32.0), (0, 32.0), *[(WHOLE, 4.0)] * 6]),
        *phase(15, 0.2, 0.1, [*[(WHOLE, 4.0)] * 4, *[(0, 32.0)] * 4]),
        *phase(25, 0.2, 0.5, [(0, 32.0), (0, 32.0), (0, 32.0), (WHOLE, 32.0)]),
    ]
    fall, rise, load = analysis.adaptations(Traced("steps", "squeezenet", WHOLE, 4.0, world, moments))
    assert (fall.blind, fall.best, fall.second) == (1, "local", 1.0), "its first transfer revealed the change"
    assert fall.costs[:3] == [2.0, 2.0, 1.0]
    assert (rise.blind, rise.best, rise.second) == (4, "offload", 1.0), "computing locally, it had to wait for a probe"
    assert (load.blind, load.second) == (1, 2.5), "here it adapted late"


def answered(server: Daemon) -> float:
    """Number of requests that a server has answered without an error."""
    return metric(server.metrics, "loadpart_edge_requests_total", code="OK")


def test_other_devices_ask_as_often_as_told_and_fail_aloud(store: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.comparison.others"]
    with daemon("--store", str(store), "--threads", "1", "--metrics-listen", "127.0.0.1:0", "--models", "tiny") as own:
        others = subprocess.Popen(
            [*command, own.target, "tiny"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"LOADPART_EDGE_STORE": str(store)},
        )  # fmt: skip
        assert others.stdin is not None
        assert answered(own) == 0
        others.stdin.write("0.1 1\n")
        others.stdin.flush()
        eventually(lambda: answered(own) > 20, "requests come")
        others.stdin.write("0.0 1\n")
        others.stdin.flush()
        eventually(lambda: rests(lambda: answered(own)), "and stop")
        before = answered(own)
        others.stdin.write("0.1 2\n")
        others.stdin.flush()
        eventually(lambda: answered(own) > before, "and come again")
    _, errors = others.communicate(timeout=60)
    assert others.returncode == 1, "the process must fail when the server is gone"
    assert "UnavailableError" in errors


@pytest.mark.parametrize(("level", "busy"), [(0.05, 0.05), (0.5, 0.47), (2.0, 1.0)])
def test_other_devices_begin_as_they_are_in_the_long_run(level: float, busy: float) -> None:
    tails = [0.01, 0.01, 0.02, 0.02, 0.1, 0.1]
    found = [first_frames(level / sum(tails), tails, f"{seed}") for seed in range(400)]
    share = sum(min(each) == 0.0 for each in found) / len(found)  # trials in which a device starts with a queued frame
    assert share == pytest.approx(busy, abs=0.06)
    assert first_frames(0.0, tails, "0") == [math.inf] * len(tails)
    assert first_frames(level, tails, "0") == first_frames(level, tails, "0")


def test_an_outside_process_takes_the_share_it_is_told() -> None:
    core = min(os.sched_getaffinity(0))
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.comparison.outside", str(core)], stdin=subprocess.PIPE, text=True
    )
    watched = psutil.Process(process.pid)
    assert process.stdin is not None

    def taken() -> float:
        return sum(watched.cpu_times()[:2])

    with subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", "while True: pass"]) as rival:
        process.stdin.write("0.3\n")
        process.stdin.flush()
        eventually(lambda: taken() > 0.2, "it is busy")
        before, started = taken(), time.monotonic()
        eventually(lambda: taken() > before + 0.6, "it goes on")
        share = (taken() - before) / (time.monotonic() - started)
        rival.kill()
    assert share == pytest.approx(0.3, rel=0.3), "it gets its share although another process uses that core"
    assert watched.cpu_affinity() == [core]
    process.stdin.write("0\n")
    process.stdin.flush()
    eventually(lambda: rests(taken), "it rests")
    process.communicate(timeout=60)  # it ends when its input is closed
    assert process.returncode == 0


def test_the_report_is_written_from_the_results(tmp_path: Path) -> None:
    writer = Writer(tmp_path / report.FOLDER / report.RESULTS)
    writer.how(machine="a machine", date="2022-07-10")
    for number, condition in enumerate(grid.balanced()):
        writer.measured(measured(condition, load_aware=0.1 if number else 0.4, cut=WHOLE if number else 0))
    writer.traced(
        Traced("steps", "squeezenet", WHOLE, 4.0, [(0.0, 32.0, IDLE), (5.0, 4.0, IDLE)], [
            *phase(0, 0.2, 0.1, [(0, 32.0)] * 5), *phase(5, 0.2, 0.4, [(0, 32.0), (0, 32.0), *[(WHOLE, 4.0)] * 6]),
        ])
    )  # fmt: skip
    writer.close()
    headline = report.write(tmp_path)
    text = (tmp_path / report.REPORT).read_text(encoding="utf-8")
    assert headline in text
    assert "1 of 42" in headline
    assert "1 of 1" in headline
    assert "a machine" in text
    for picture in ("latency-bandwidth", "latency-load", "gain", "trace-steps"):
        assert f"]({report.FOLDER}/{picture}.svg)" in text
        assert (tmp_path / report.FOLDER / f"{picture}.svg").read_text(encoding="utf-8").count("<path") > 20
    before = {path.name: path.read_bytes() for path in (tmp_path / report.FOLDER).iterdir()}
    report.write(tmp_path)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / report.FOLDER).iterdir()}, "it changed"
