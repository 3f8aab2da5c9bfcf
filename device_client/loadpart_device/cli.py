"""The command line of the device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from loadpart_common.errors import OffloadError
from loadpart_device.client import OffloadClient
from loadpart_device.images import load_images
from loadpart_device.policies import POLICIES
from loadpart_device.settings import ENV_PREFIX, load_settings, parse_policy

if TYPE_CHECKING:
    from loadpart_common.tensors import Array
    from loadpart_device.result import Result

_TOP = 5
_PHASES = ("decide", "head", "encode", "network", "queue", "tail", "total")

app = typer.Typer(
    name="loadpart-device",
    help="Runs neural networks across this device and an edge server.",
    epilog=f"Settings can also be given as {ENV_PREFIX}NAME in the environment, or in a TOML file (--config).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def device() -> None:
    """Runs neural networks across this device and an edge server."""


@app.command()
def infer(
    image: Annotated[list[Path], typer.Option(help="Image file; several make a batch.")],
    server: Annotated[str | None, typer.Option(help="HOST:PORT of the edge server.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model.")] = None,
    policy: Annotated[
        str | None, typer.Option(help=f"{', '.join(POLICIES)}, or the number of layers to run here.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="How many times to run.")] = 1,
    deadline: Annotated[float | None, typer.Option(help="Seconds within which an answer is wanted.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one operator; all cores if absent.")] = None,
    cache: Annotated[str | None, typer.Option(help="Folder for fetched models.")] = None,
    connect_timeout: Annotated[float | None, typer.Option(help="Seconds to wait for the server.")] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus metrics.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line an inference, for programs.")] = False,
    config: Annotated[Path | None, typer.Option(envvar=f"{ENV_PREFIX}CONFIG", help="TOML file with settings.")] = None,
) -> None:
    """Classifies image files; prints the top classes, the plan, and where the time went."""
    flags = {
        "server": server,
        "model": model,
        "policy": policy,
        "deadline": deadline,
        "threads": threads,
        "cache": cache,
        "connect_timeout": connect_timeout,
        "metrics_listen": metrics_listen,
    }
    settings = load_settings(flags, config)
    console = Console(stderr=True)
    columns = (TextColumn("fetching the model"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("fetching", total=None, visible=False)
        client = OffloadClient(
            settings.server,
            settings.model,
            policy=parse_policy(settings.policy),
            deadline=settings.deadline,
            threads=settings.threads,
            cache=settings.cache,
            connect_timeout=settings.connect_timeout,
            metrics_listen=settings.metrics_listen,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total, visible=True),
        )
    with client:
        batch = load_images(image, client.graph.inputs[0])
        client.wait_ready(settings.connect_timeout)
        for _ in range(repeat):
            result = client.infer(batch)
            classes = [_top(scores, client.labels) for scores in result.output]
            if as_json:
                print(json.dumps(_document(settings.model, image, classes, result)), flush=True)
            else:
                _show(settings.model, image, classes, result)


def _top(scores: Array, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """The classes with the highest scores of one image, as probabilities (softmax)."""
    flat = scores.ravel().astype(np.float64)
    shares = np.exp(flat - flat.max())
    shares /= shares.sum()
    best = np.argsort(-flat, kind="stable")[:_TOP]
    return [
        {"class": int(i), "label": labels[i] if i < len(labels) else f"class {i}", "probability": float(shares[i])}
        for i in best
    ]


def _document(model: str, images: list[Path], classes: list[list[dict[str, Any]]], result: Result) -> dict[str, Any]:
    pictures = [{"image": str(path), "top": top} for path, top in zip(images, classes, strict=True)]
    return {"model": model, "images": pictures, **result.to_json()}


def _show(model: str, images: list[Path], classes: list[list[dict[str, Any]]], result: Result) -> None:
    console = Console(highlight=False)
    for path, top in zip(images, classes, strict=True):
        console.print(f"[bold]{path.name}[/bold]: {model} says")
        for entry in top:
            console.print(f"  {entry['probability']:7.2%}  {entry['label']}")
    console.print(f"[bold]plan[/bold]: {result.plan.location} - {result.plan.reason}", soft_wrap=True)
    table = Table(*_PHASES, title="milliseconds", box=None, header_style="bold", title_justify="left")
    table.add_row(*(f"{getattr(result.timings, phase) * 1e3:.2f}" for phase in _PHASES))
    console.print(table)


def main() -> None:
    """Entry point: a domain error is one line on stderr and exit code 1."""
    try:
        app()
    except OffloadError as error:
        print(f"loadpart-device: {error}", file=sys.stderr)
        sys.exit(1)
