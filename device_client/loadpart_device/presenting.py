"""How the command line shows results and plans: tables for people, documents for programs."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from loadpart_common.console import shown
from loadpart_device.result import PHASES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from loadpart_common.tensors import Array
    from loadpart_device.accuracy import PlanAccuracy
    from loadpart_device.deciding.explain import PlanCost, View
    from loadpart_device.result import Result

_TOP = 5
_FILE_WIDTH = 110
"""Columns of a table that goes into a file, where nothing wraps."""


def top(scores: Array, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """The classes with the highest scores of one image, as probabilities (softmax)."""
    flat = scores.ravel().astype(np.float64)
    shares = np.exp(flat - flat.max())
    shares /= shares.sum()
    best = np.argsort(-flat, kind="stable")[:_TOP]
    return [
        {"class": int(i), "label": labels[i] if i < len(labels) else f"class {i}", "probability": float(shares[i])}
        for i in best
    ]


def document(model: str, images: list[Path], classes: list[list[dict[str, Any]]], result: Result) -> dict[str, Any]:
    """An inference for programs: classes of each image, plan and timings."""
    pictures = [{"image": str(path), "top": top} for path, top in zip(images, classes, strict=True)]
    return {"model": model, "images": pictures, **result.to_json()}


def show(model: str, images: list[Path], classes: list[list[dict[str, Any]]], result: Result) -> None:
    """Prints an inference for people."""
    out = Console(highlight=False)
    for path, top in zip(images, classes, strict=True):
        out.print(f"[bold]{shown(path.name)}[/bold]: {shown(model)} says")
        for entry in top:
            out.print(f"  {entry['probability']:7.2%}  {shown(entry['label'])}")
    out.print(f"[bold]plan[/bold]: {result.plan.location} - {shown(result.plan.reason)}", soft_wrap=True)
    table = Table(*PHASES, title="milliseconds", box=None, header_style="bold", title_justify="left")
    table.add_row(*(f"{getattr(result.timings, phase) * 1e3:.2f}" for phase in PHASES))
    out.print(table)


def show_accuracy(rows: list[PlanAccuracy], engine: str, reference: str, pictures: int, crops: int) -> None:
    """Prints how far the outputs of each plan are from those of the exact engine."""
    table = Table(
        "plan", "runs", "mean error", "worst error", "same top class", "same bits as here",
        title=f"error as a share of the largest output, over {pictures} picture(s), each {crops} time(s)",
        box=None, header_style="bold",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            str(row.plan), row.location, f"{row.mean_error:.2g}", f"{row.worst_error:.2g}", f"{row.agreement:.1%}",
            "yes" if row.exact else "no",
        )  # fmt: skip
    out = Console(highlight=False)
    out.print(table)
    out.print(f"this device computes with {shown(engine)}; compared with {shown(reference)}", soft_wrap=True)


def show_plans(views: list[View], costs: list[PlanCost]) -> None:
    """Prints what plans cost, the chosen one in bold."""
    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = max(out.width, _FILE_WIDTH)
    columns = ["cut", "codec", "after layer", "kB", "device", "network", "queue", "server", "total ms", "error", ""]
    if has_several := len(views) > 1:
        columns.insert(0, "with")
    table = Table(*columns, title=views[0].network.name, box=None, header_style="bold", title_justify="left")
    for cost in costs:
        parts = (cost.device_seconds, cost.network_seconds, cost.queue_seconds, cost.server_seconds, cost.total_seconds)
        table.add_row(
            *([cost.server] if has_several else []),
            str(cost.plan.cut),
            cost.plan.codec,
            shown(cost.layer),
            f"{cost.nbytes / 1e3:.1f}",
            *(f"{seconds * 1e3:.2f}" for seconds in parts),
            _error(cost),
            "<- chosen" if cost.chosen else "",
            style="bold" if cost.chosen else None,
        )
    out.print(table)
    for network, state in views:
        out.print(f"{state}; {network.source}", soft_wrap=True)


def _error(cost: PlanCost) -> str:
    """The worst error that was measured; with a tilde what the codec is known for; nothing where there is none."""
    if cost.is_error_measured:
        return f"{cost.error:.1%}"
    return f"~{cost.error:.1%}" if cost.error else ""


@contextlib.contextmanager
def fetching() -> Iterator[Callable[[int, int], None]]:
    """A progress bar for the bytes of a model; gives what to call with those that have come and those of all."""
    out = Console(stderr=True)
    columns = (TextColumn("fetching the model"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as progress:
        task = progress.add_task("fetching", total=None, visible=False)
        yield lambda done, total: progress.update(task, completed=done, total=total, visible=True)


def row(cost: PlanCost) -> dict[str, Any]:
    """What a plan costs, as a flat document."""
    row = asdict(cost)
    del row["plan"]
    return {"server": cost.server, "cut": cost.plan.cut, "codec": cost.plan.codec, **row}
