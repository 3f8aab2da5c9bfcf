"""Runs the comparison, and writes the report."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.comparison import codecs, grid, report, traces
from benchmarks.comparison.grid import NETWORKS
from benchmarks.comparison.measure import (
    LEAST_ROUNDS,
    MOST_ROUNDS,
    OUTSIDE_NICE,
    POLICIES,
    SHARES,
    START_MEGABITS,
    Means,
    device,
    measure,
    server_load,
)
from benchmarks.comparison.others import DEVICES_A_NETWORK
from benchmarks.comparison.records import Measured, Results, Writer, read
from benchmarks.daemon import BIN, conditions, daemon, export_missing
from benchmarks.testbed import SERVER_ADDRESS, link
from loadpart_common.engines.base import EngineSetup
from loadpart_common.engines.executor import EngineExecutor
from loadpart_common.engines.registry import DEFAULT_ENGINE, ENGINES
from loadpart_common.latency.measurements import Measurements

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.progress import TaskID

    from benchmarks.comparison.grid import Condition
    from benchmarks.comparison.traces import Trace


class Kind(NamedTuple):
    """How much is measured.

    Attributes:
        conditions: Returns the conditions.
        traces: Returns the traces.
        seconds: Seconds to measure each condition.
        calibrates: Whether the latency model is calibrated before the first run; if not, the shipped one may be used.
        adaptive: The arms that decide, and what their clients are made with.
        has_fixed: Whether there is an arm for each plan that can win, too.
    """

    conditions: Callable[[], list[Condition]]
    traces: Callable[[], list[Trace]]
    seconds: float
    calibrates: bool
    adaptive: Mapping[str, Mapping[str, Any]] = POLICIES
    has_fixed: bool = True


KINDS = {
    "quick": Kind(grid.quick, traces.quick, 10.0, calibrates=False),
    "balanced": Kind(grid.balanced, traces.full, 20.0, calibrates=True),
    "full": Kind(grid.full, traces.full, 30.0, calibrates=True),
    "codecs": Kind(grid.thin, list, 12.0, calibrates=True, adaptive=codecs.ARMS, has_fixed=False),
    "codecs-quick": Kind(grid.thin_quick, list, 8.0, calibrates=False, adaptive=codecs.ARMS, has_fixed=False),
}

_EXECUTOR_BYTES = 512 << 20

console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def run(
    which: Annotated[str, typer.Argument(help=f"the conditions: {', '.join(KINDS)}")],
    output: Annotated[Path, typer.Option(help="folder for the report; pictures and raw results go below it")],
    *,
    engine: Annotated[str, typer.Option(help=f"engine of both sides: {', '.join(ENGINES)}")] = DEFAULT_ENGINE,
    network: Annotated[list[str] | None, typer.Option(help="only conditions of this one; may be repeated")] = None,
    megabits: Annotated[list[int] | None, typer.Option(help="only conditions with this rate; may be repeated")] = None,
    seconds: Annotated[float | None, typer.Option(help="how long to measure each condition")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the results that are there")] = False,
) -> None:
    """Measures all policies under many conditions and in traces, and writes the report; needs root."""
    if which not in KINDS:
        raise typer.BadParameter(f"expected one of {', '.join(KINDS)}, got {which!r}")
    kind = KINDS[which]
    kind = kind._replace(seconds=seconds or kind.seconds)
    path = output / report.FOLDER / report.RESULTS
    if not resume:
        path.unlink(missing_ok=True)
    before = read(path) if path.exists() else Results()
    done = {each.condition for each in before.measured}, {each.name for each in before.traced}
    wanted = [
        each
        for each in kind.conditions()
        if each not in done[0]
        and (not network or each.network in network)
        and (not megabits or each.megabits in megabits)
    ]
    courses = [each for each in kind.traces() if each.name not in done[1] and not (network or megabits)]
    signal.signal(signal.SIGTERM, _exit)  # so that SIGTERM also removes namespaces and processes
    export_missing()
    writer = Writer(path)
    writer.how(
        date=datetime.now(UTC).date().isoformat(),
        machine=conditions(),
        engine=ENGINES[engine].version(),
        conditions=f"{len(kind.conditions())} ({which})",
        rounds=f"for {kind.seconds:.0f} s, at least {LEAST_ROUNDS} and at most {MOST_ROUNDS}; all arms once in each",
        device="one core, CPU quota " + ", ".join(f"{share:.1%} ({about}x)" for about, share in SHARES.items()),
        server="the other core, one worker with one thread",
        clients=f"{DEVICES_A_NETWORK * len(NETWORKS)} other devices, as many for each network: images at random times, "
        "the same for all arms of a round",
        outside="a process on the server's core, of higher priority (nice "
        f"{OUTSIDE_NICE}), that takes that share of its time, in slices of 50 ms; two at 200 %",
    )
    try:
        _run(kind, wanted, courses, writer, EngineSetup(ENGINES[engine], 1))
    finally:
        writer.close()
    if kind.has_fixed:
        draw(output)
    else:
        compare_codecs(output)


@app.command("codecs")
def compare_codecs(output: Annotated[Path, typer.Argument(help="the folder that `run codecs` wrote to")]) -> None:
    """Compares what a device may send: latency with each choice of codecs, by condition."""
    codecs.show(read(output / report.FOLDER / report.RESULTS), console)


@app.command()
def draw(output: Annotated[Path, typer.Argument(help="the folder that `run` wrote to")]) -> None:
    """Writes the report and the pictures anew from the raw results."""
    console.print(Markdown(report.write(output)))
    console.print(f"{output / report.REPORT}", soft_wrap=True)


@app.command()
def engines(
    output: Annotated[Path, typer.Argument(help="the folder of a run on the engine that is looked at")],
    reference: Annotated[Path, typer.Argument(help="the folder of a run on the engine to compare it with")],
) -> None:
    """Compares two runs on different engines: mean latency of load-aware by condition."""
    one, other = (read(folder / report.FOLDER / report.RESULTS) for folder in (output, reference))
    names = [results.how["engine"] for results in (one, other)]
    table = Table("condition", *(f"{name}, ms" for name in names), "ratio", header_style="bold")
    before = {each.condition: each for each in other.measured}
    ratios, computing = [], []
    for each in one.measured:
        if each.condition in before:
            both = each, before[each.condition]
            ratios.append(_mean(both[0]) / _mean(both[1]))
            if all(_computing_share(measured) > 0.5 for measured in both):
                computing.append(ratios[-1])
            table.add_row(str(each.condition), *(f"{_mean(each) * 1e3:.1f}" for each in both), f"{ratios[-1]:.2f}")
    console.print(table)
    console.print(f"mean ratio {statistics.mean(ratios):.2f} over {len(ratios)} conditions")
    if computing:
        console.print(
            f"mean ratio {statistics.mean(computing):.2f} over the {len(computing)} in which the link takes less than "
            "half of the latency on both engines (at most 0.6 wanted)"
        )


def _mean(measured: Measured) -> float:
    return statistics.mean(sample.total for sample in measured.arms["load-aware"])


def _computing_share(measured: Measured) -> float:
    """Share of load-aware's latency that is not spent on the network."""
    samples = measured.arms["load-aware"]
    return 1 - sum(sample.network for sample in samples) / sum(sample.total for sample in samples)


def _run(kind: Kind, wanted: list[Condition], courses: list[Trace], writer: Writer, setup: EngineSetup) -> None:
    cores = sorted(os.sched_getaffinity(0))
    kept = Path(".cache") / "benchmarks"
    means = Means(kept / "models", kept / "latency", kept / "decisions", setup)
    means.decisions.mkdir(parents=True, exist_ok=True)
    how = ("--engine", setup.engine.name, "--threads", "1", "--latency-folder", str(means.latency))
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with contextlib.ExitStack() as stack:
        wire = stack.enter_context(link())
        if kind.calibrates and not Measurements(setup, means.latency).model_path.exists():
            subprocess.run([BIN / "loadpart-edge", "calibrate", *how], check=True)
        networks = sorted({*NETWORKS, *(each.network for each in wanted)})
        arguments = ("--workers", "1", "--models", ",".join(networks), *how)
        server = stack.enter_context(
            daemon(*arguments, cores={cores[-1]}, address=SERVER_ADDRESS, wrapper=wire.command())
        )
        load = stack.enter_context(server_load(server.target, wire.command()))
        progress = stack.enter_context(Progress(*columns, console=console, speed_estimate_period=3600))
        wire.enter_device()
        os.sched_setaffinity(0, {cores[0]})
        # Held to the end, so that all clients share one engine and its thread.
        executor = EngineExecutor.acquire(setup, memory_limit_bytes=_EXECUTOR_BYTES)
        task = progress.add_task("", total=len(wanted) + len(courses))
        done = 0
        everything: list[Condition | Trace] = [*wanted, *courses]
        jobs = sorted(everything, key=lambda job: (networks.index(job.network), job.slow_down))
        for (network, slow_down), group in groupby(jobs, key=lambda job: (job.network, job.slow_down)):
            progress.update(task, description=f"{network}, device {slow_down}x slower")
            wire.shape(START_MEGABITS)
            with device(server.target, network, slow_down, means, kind.adaptive, has_fixed=kind.has_fixed) as slow:
                for job in group:
                    progress.update(task, description=str(job))
                    tell = partial(_advance, progress, task, done)
                    if isinstance(job, grid.Condition):
                        writer.measured(measure(slow, job, wire, load, kind.seconds, tell))
                    else:
                        writer.traced(traces.run(job, slow, wire, load, tell))
                    done += 1
        executor.release()


def _advance(progress: Progress, task: TaskID, done: int, share: float) -> None:
    progress.update(task, completed=done + share)


def _exit(*_: object) -> NoReturn:
    sys.exit(143)


if __name__ == "__main__":
    app()
