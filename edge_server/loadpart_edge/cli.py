"""The command line of the edge server: serve, export, add, models, calibrate, profile, credentials."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadpart_common import console
from loadpart_common.engines.mindspore.zoo import FORMAT, NETWORKS
from loadpart_common.engines.mindspore.zoo import export as export_network
from loadpart_common.engines.registry import ENGINES, calibrated_setup
from loadpart_common.errors import OffloadError
from loadpart_common.formats.registry import FORMATS, format_of
from loadpart_common.latency.measurements import Measurements
from loadpart_common.logs import log_to_stderr
from loadpart_common.store.engine_choice import choose_engine
from loadpart_common.store.model_store import ModelStore, check_model
from loadpart_common.tensors import BATCH
from loadpart_edge.access.commands import app as credentials
from loadpart_edge.daemon import Daemon
from loadpart_edge.settings import ENV_PREFIX, load_settings

if TYPE_CHECKING:
    from loadpart_common.store.model_store import StoredModel

app = typer.Typer(
    name="loadpart-edge",
    help="Runs the tails of neural networks for devices that run the heads.",
    epilog=f"Every setting can also be given as {ENV_PREFIX}NAME in the environment, or in a TOML file (--config).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(credentials)

Config = Annotated[Path | None, typer.Option(envvar=f"{ENV_PREFIX}CONFIG", help="TOML file with settings.")]
Store = Annotated[Path | None, typer.Option(help="Folder of the model store.")]


@app.callback()
def begin(context: typer.Context) -> None:
    """Has Ctrl-C raise an error again, so that commands can undo what they have begun; a daemon undoes nothing yet."""
    if context.invoked_subcommand != "serve":
        signal.signal(signal.SIGINT, signal.default_int_handler)


@app.command()
def serve(
    listen: Annotated[str | None, typer.Option(help="HOST:PORT for gRPC; port 0 picks a free one.")] = None,
    metrics_listen: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus metrics.")] = None,
    models: Annotated[str | None, typer.Option(help="Models to serve, by commas; all in the store if absent.")] = None,
    store: Store = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM file with the server's certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its private key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM file with the authorities of devices' certificates.")
    ] = None,
    clients: Annotated[Path | None, typer.Option(help="TOML file of those who may use the server.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen to a network without TLS or without credentials.")
    ] = None,
    open_health: Annotated[
        bool | None, typer.Option("--open-health", help="Answer health checks of clients without credentials.")
    ] = None,
    health_listen: Annotated[
        str | None, typer.Option(help="HOST:PORT for gRPC's health service alone, for probes; in the clear.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes; each holds all models.")] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Ray cluster to run the workers on: HOST:PORT, or auto for an own one.")
    ] = None,
    workers_min: Annotated[int | None, typer.Option(help="Workers that there always are on the cluster.")] = None,
    workers_max: Annotated[
        int | None,
        typer.Option(help="Workers while the backlog calls for them; 0: as many as the nodes have room for."),
    ] = None,
    workers_down_seconds: Annotated[
        float | None, typer.Option(help="How long fewer must have been enough before workers are given up.")
    ] = None,
    worker_resources: Annotated[
        str | None, typer.Option(help="What a worker takes of a node, such as CPU=4,GPU=1; loadpart=1 if absent.")
    ] = None,
    engine: console.EngineName = None,
    precision: console.Precision = None,
    provider: console.Provider = None,
    codecs: Annotated[str | None, typer.Option(help="Codecs that devices may use, by commas; all if absent.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of one worker; 0 shares out the cores.")] = None,
    queue_limit: Annotated[int | None, typer.Option(help="Jobs that may wait; more are refused.")] = None,
    max_message_bytes: Annotated[int | None, typer.Option(help="Largest message that is accepted.")] = None,
    memory_bytes: Annotated[int | None, typer.Option(help="Bytes of requests that are held at a time.")] = None,
    refusals_per_second: Annotated[
        float | None, typer.Option(help="Wrong calls on a connection that do not slow it down.")
    ] = None,
    segment_memory_bytes: Annotated[int | None, typer.Option(help="Memory of a worker's compiled tails.")] = None,
    latency_folder: console.LatencyFolder = None,
    status_period_seconds: Annotated[float | None, typer.Option(help="Period of the status stream.")] = None,
    drain_seconds: Annotated[float | None, typer.Option(help="How long SIGTERM waits for jobs.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    config: Config = None,
) -> None:
    """Serves models until SIGTERM; says on stdout when it is ready, and where it listens."""
    flags = {name: value for name, value in locals().items() if name != "config"}
    settings = load_settings(flags, config)
    log_to_stderr(settings.log_level, "daemon")
    with console.progress("building tails") as tell:
        asyncio.run(Daemon(settings, tell).run())


@app.command()
def export(
    names: Annotated[list[str] | None, typer.Argument(help=f"Networks: {', '.join(NETWORKS)}; all if absent.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="MindSpore .ckpt with the weights of the one network.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of random weights, also for a network that has trained ones.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Text file with the names of the classes, one a line.")] = None,
    store: Store = None,
    config: Config = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only networks that the store lacks.")] = False,
) -> None:
    """Writes networks into the model store."""
    target = ModelStore(load_settings({"store": store}, config).store)
    chosen = names or list(NETWORKS)
    if checkpoint is not None and len(chosen) != 1:
        raise typer.BadParameter("a checkpoint holds the weights of one network: name it")
    if missing:
        chosen = [name for name in chosen if name not in target.names()]
    lines = tuple(labels.read_text(encoding="utf-8").splitlines()) if labels else None
    with console.progress("exporting") as tell:
        for done, name in enumerate(chosen):
            tell(done, len(chosen))
            with target.adding(name, FORMAT) as path:
                classes = export_network(name, path, seed=seed, checkpoint=checkpoint)
            target.set_labels(name, classes if lines is None else lines)
            target.open(name)
    Console().print(f"{len(chosen)} network(s) written to {target.folder}", highlight=False, soft_wrap=True)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="The model: a .onnx or .mindir file.")],
    name: Annotated[str | None, typer.Option(help="What devices call it; the file's name if absent.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="Sizes of an input that the file leaves open, such as image=N,3,320,320, where N is any batch size; "
            "may be repeated."
        ),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Text file with the names of the classes, one a line.")] = None,
    store: Store = None,
    config: Config = None,
) -> None:
    """Copies a model into the model store, with weights that lie in files beside it."""
    target = ModelStore(load_settings({"store": store}, config).store)
    model_format = format_of(file)
    if model_format is None:
        suffixes = " or ".join(FORMATS[each].suffix for each in FORMATS)
        raise typer.BadParameter(f"expected a file that ends in {suffixes}, got {file.name!r}")
    shapes = dict(map(_shape, shape or []))
    called = name or file.name.removesuffix(model_format.suffix)
    with target.adding(called, model_format.name) as path:
        model_format.bring_in(file, path, shapes)
        check_model(path, model_format.name)
    if labels is not None:
        target.set_labels(called, tuple(labels.read_text(encoding="utf-8").splitlines()))
    graph = target.open(called).graph
    Console().print(
        f"{called}: {', '.join(map(str, graph.inputs))}, {graph.layer_count} layers, {len(graph.cuts)} places to cut",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip


def _shape(text: str) -> tuple[str, list[int]]:
    """What `--shape` says: an input and its sizes."""
    name, equals, sizes = text.rpartition("=")
    parts = [part.strip() for part in sizes.split(",")]
    if parts[0] == "N":
        parts[0] = str(BATCH)
    if not (name and equals and all(part.isdecimal() and int(part) for part in parts if part != str(BATCH))):
        raise typer.BadParameter(f"expected --shape INPUT=N,3,320,320 or the like, got {text!r}")
    return name, list(map(int, parts))


@app.command()
def models(store: Store = None, config: Config = None) -> None:
    """Lists the model store."""
    target = ModelStore(load_settings({"store": store}, config).store)
    table = Table(
        "model", "format", "input", "output", "layers", "cuts", "GFLOP", "MB", "digest", "engines",
        box=None, header_style="bold",
    )  # fmt: skip
    for name in target.names():
        try:
            stored = target.open(name)
        except OffloadError as error:
            table.add_row(console.shown(name), console.shown(f"cannot be served: {error}"))
            continue
        manifest, graph = stored.manifest, stored.graph
        table.add_row(
            name,
            manifest.format,
            " ".join(map(str, graph.inputs)),
            " ".join(map(str, graph.output_specs)),
            str(graph.layer_count),
            str(len(graph.cuts)),
            f"{sum(layer.flops for layer in graph.layers) / 1e9:.2f}",
            f"{manifest.file_bytes / 1e6:.1f}",
            manifest.digest[:12],
            console.shown(", ".join(_engines_of(stored))),
        )
    if table.row_count:
        Console().print(table)
    else:
        Console().print(f"no models in {target.folder}: 'loadpart-edge export' puts some there", highlight=False)


def _engines_of(stored: StoredModel) -> list[str]:
    """The installed engines that run a model; for one that cannot, why."""
    name = stored.manifest.format
    engines = [ENGINES[each] for each in ENGINES if name in ENGINES[each].formats and ENGINES[each].is_installed()]
    with contextlib.closing(FORMATS[name].open(stored.path)) as model:
        reasons = [(engine.name, engine.why_not(model)) for engine in engines]
    return [engine if why is None else f"not {engine} ({why})" for engine, why in reasons]


@app.command()
def calibrate(
    engine: console.EngineName = None,
    precision: console.Precision = None,
    provider: console.Provider = None,
    threads: console.Threads = None,
    latency_folder: console.LatencyFolder = None,
    config: Config = None,
    show: Annotated[bool, typer.Option("--show", help="Print the latency model in use; measure nothing.")] = False,
) -> None:
    """Measures what operators cost on this machine (a minute or two), for networks that never ran here."""
    flags = {"engine": engine, "precision": precision, "provider": provider}
    settings = load_settings({**flags, "threads": threads, "latency_folder": latency_folder}, config)
    measurements = Measurements(calibrated_setup(settings.engine_choice), settings.latency_folder)
    console.calibrate(measurements, show=show)


@app.command()
def profile(
    names: Annotated[list[str] | None, typer.Argument(help="Models in the store; all if absent.")] = None,
    engine: console.EngineName = None,
    precision: console.Precision = None,
    provider: console.Provider = None,
    threads: console.Threads = None,
    store: Store = None,
    latency_folder: console.LatencyFolder = None,
    config: Config = None,
) -> None:
    """Measures heads and tails of models on this machine; the daemon takes their figures from then on."""
    flags: dict[str, Any] = {"engine": engine, "precision": precision, "provider": provider, "threads": threads}
    flags |= {"store": store, "latency_folder": latency_folder}
    settings = load_settings(flags, config)
    models = ModelStore(settings.store)
    for name in names or models.names():
        setup, stored = choose_engine(models.open(name), settings.engine_choice)
        console.profile(Measurements(setup, settings.latency_folder), stored)


def main() -> None:
    """Entry point."""
    console.run(app, "loadpart-edge")
