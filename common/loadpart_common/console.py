"""What the two command lines share: progress bars, the run of a command, calibrating and profiling."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadpart_common.errors import OffloadError
from loadpart_common.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from loadpart_common.engines.segment_cache import SegmentCache
    from loadpart_common.latency.measurements import Measurements
    from loadpart_common.latency.model import LatencyModel
    from loadpart_common.store.model_store import StoredModel

LatencyFolder = Annotated[Path | None, typer.Option(help="Folder for what is measured of this machine.")]
_LONGEST_ERROR = 20_000

EngineName = Annotated[
    str | None,
    typer.Option("--engine", help="mindspore, onnxruntime, openvino, or auto: the fastest, as measured."),
]
Precision = Annotated[str | None, typer.Option(help="exact, or what the engine offers: bfloat16, float16.")]
Provider = Annotated[
    str | None, typer.Option(help="What the engine computes on, such as cuda; the processor if absent.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of one operator; all cores if absent.")]


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr, where there is a terminal; gives what to call with the steps done and those of all."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=done < total)


def shown(text: str) -> str:
    """A text from others as it is given to a `Console`: on one line, and nothing in it changes how it is shown."""
    return escape(printable(text))


def run(app: typer.Typer, name: str) -> None:
    """Runs a command line: a domain error is one line on stderr and exit code 1."""
    try:
        app()
    except OffloadError as error:
        print(f"{name}: {printable(str(error), _LONGEST_ERROR)}", file=sys.stderr)
        sys.exit(1)


def calibrate(measurements: Measurements, *, show: bool) -> None:
    """Measures this machine, keeps the latency model and prints it; with `show`, prints the one in use only."""
    if not show:
        from loadpart_common.latency.calibration import calibrate as measure

        with progress("calibrating") as tell, _engine(measurements) as cache:
            measurements.save_model(measure(cache, on_progress=tell))
    _print_model(measurements.model(), measurements.model_path)


def profile(measurements: Measurements, stored: StoredModel) -> None:
    """Measures one network on this machine, keeps its profile and prints it beside what the model predicts."""
    from loadpart_common.latency.curves import Curves
    from loadpart_common.latency.profile import measure_profile

    latency = measurements.model()
    with progress(f"profiling {stored.manifest.name}") as tell, _engine(measurements) as cache:
        model = cache.load(stored.path, stored.manifest.format, stored.manifest.digest)
        measured = measure_profile(cache, model, latency, on_progress=tell)
    measurements.save_profile(stored.manifest.digest, measured)
    graph = stored.graph
    curves = Curves(graph, latency)
    heads, tails = curves.head_seconds({}), curves.tail_seconds({})
    table = Table("cut", "after layer", "head", "predicted", "tail", "predicted", title="milliseconds", box=None)
    for cut in sorted({*measured.heads, *measured.tails}):
        cells = [f"{measured.heads.get(cut, 0.0) * 1e3:.2f}", f"{heads[cut] * 1e3:.2f}"]
        cells += [f"{measured.tails.get(cut, 0.0) * 1e3:.2f}", f"{tails[cut] * 1e3:.2f}"]
        table.add_row(str(cut), shown(graph.layers[cut - 1].name) if cut else "(input)", *cells)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"kept in {measurements.profile_path(stored.manifest.digest)}", soft_wrap=True)


def _print_model(model: LatencyModel, path: Path) -> None:
    """Prints a latency model: what each family costs, by feature."""
    units = {"calls": "us a call", "flops": "GFLOP/s", "rows": "ns a row", "outputs": "ns an output"}
    table = Table("family", *units.values(), "ns a byte", title="latency model", box=None, header_style="bold")
    for family, row in sorted(model.coefficients.items()):
        byte_costs = [
            f"{name.removesuffix('_bytes')} {cost * 1e9:.3f}" for name, cost in row.items() if "bytes" in name
        ]
        rate = f"{1e-9 / row['flops']:.0f}" if row.get("flops") else ""
        per_item = [f"{row[name] * 1e9:.1f}" if name in row else "" for name in ("rows", "outputs")]
        table.add_row(family, f"{row.get('calls', 0.0) * 1e6:.1f}", rate, *per_item, ", ".join(byte_costs))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{model.machine}; {model.engine}, {model.threads} thread(s); {model.segments} segments, "
        f"mean error of the fit {model.error:.1%}",
        soft_wrap=True,
    )
    console.print(
        f"kept in {path}" if path.is_file() else "shipped with the software; 'calibrate' measures this machine"
    )


@contextlib.contextmanager
def _engine(measurements: Measurements) -> Iterator[SegmentCache]:
    """The engine that is to be measured, started."""
    from loadpart_common.engines.segment_cache import SegmentCache

    cache = SegmentCache(measurements.setup.start())
    try:
        yield cache
    finally:
        cache.close()
