"""The command line of the device."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from loadpart_common import console
from loadpart_common.codecs.registry import CODECS
from loadpart_common.engines.registry import calibrated_setup
from loadpart_common.errors import SettingsError
from loadpart_common.latency.measurements import Measurements
from loadpart_common.planning.plan import PlanKey
from loadpart_common.store.engine_choice import choose_engine
from loadpart_device.accuracy import measure_accuracy, pictures_in, usual_crops
from loadpart_device.allowed_codecs import LEAST_PICTURES, AllowedCodecs, default_accuracy_folder, save_measured
from loadpart_device.client import OffloadClient
from loadpart_device.deciding.decision_log import read_decisions
from loadpart_device.deciding.explain import State, View, plan_costs
from loadpart_device.deciding.look_up import look_up
from loadpart_device.deciding.plot import plot as draw
from loadpart_device.deciding.policies import ADAPTIVE, POLICIES
from loadpart_device.deciding.replay import summary
from loadpart_device.edges.fleet import Fleet
from loadpart_device.edges.link import LinkReading
from loadpart_device.edges.load import ServerLoad
from loadpart_device.images import load_images
from loadpart_device.model_cache import default_cache, find_model
from loadpart_device.presenting import document, fetching, row, show, show_accuracy, show_plans, top
from loadpart_device.settings import ENV_PREFIX, load_settings, parse_policy

if TYPE_CHECKING:
    from loadpart_device.settings import Settings


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


ServerOption = Annotated[
    list[str] | None,
    typer.Option(help="HOST:PORT of the edge server, or dns:///NAME:PORT for all behind a name; may be repeated."),
]
Model = Annotated[str | None, typer.Option(help="Name of the model.")]
Cache = Annotated[str | None, typer.Option(help="Folder for fetched models.")]
ConnectTimeout = Annotated[float | None, typer.Option(help="Seconds to wait for servers.")]
Codecs = Annotated[
    str | None, typer.Option(help="Codecs of what crosses, separated by commas; those that lose nothing if absent.")
]
MaxError = Annotated[
    float | None, typer.Option(help="Codecs that lose something: most error, as 'accuracy' measured it.")
]
MinAgreement = Annotated[
    float | None, typer.Option(help="Codecs that lose something: least share of equal classes, as it measured.")
]
ReplyCodec = Annotated[str | None, typer.Option(help="Codec of the server's outputs; raw if absent.")]
AccuracyFolder = Annotated[str | None, typer.Option(help="Folder with what 'accuracy' measures.")]
Json = Annotated[bool, typer.Option("--json", help="JSON lines, for programs.")]
Config = Annotated[Path | None, typer.Option(envvar=f"{ENV_PREFIX}CONFIG", help="TOML file with settings.")]


@app.command()
def infer(
    image: Annotated[list[Path], typer.Option(help="Image file; several make a batch.")],
    server: ServerOption = None,
    model: Model = None,
    policy: Annotated[
        str | None, typer.Option(help=f"{', '.join(POLICIES)}, the number of layers to run here, or CUT:CODEC.")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="How many times to run.")] = 1,
    deadline: Annotated[float | None, typer.Option(help="Seconds within which an answer is wanted.")] = None,
    codecs: Codecs = None,
    max_error: MaxError = None,
    min_agreement: MinAgreement = None,
    reply_codec: ReplyCodec = None,
    engine: console.EngineName = None,
    precision: console.Precision = None,
    provider: console.Provider = None,
    exact: Annotated[
        bool | None, typer.Option("--exact", help="Only servers whose answers have the same bits as this device's.")
    ] = None,
    threads: console.Threads = None,
    cache: Cache = None,
    latency_folder: console.LatencyFolder = None,
    accuracy_folder: AccuracyFolder = None,
    connect_timeout: ConnectTimeout = None,
    metrics_listen: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus metrics.")] = None,
    decision_log: Annotated[Path | None, typer.Option(help="File for decisions as JSON lines, see 'replay'.")] = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Classifies image files; prints the top classes, the plan, and where the time went."""
    flags = {
        "server": server,
        "model": model,
        "policy": policy,
        "deadline": deadline,
        "codecs": codecs,
        "max_error": max_error,
        "min_agreement": min_agreement,
        "reply_codec": reply_codec,
        "engine": engine,
        "precision": precision,
        "provider": provider,
        "exact": exact,
        "threads": threads,
        "cache": cache,
        "latency_folder": latency_folder,
        "accuracy_folder": accuracy_folder,
        "connect_timeout": connect_timeout,
        "metrics_listen": metrics_listen,
        "decision_log": decision_log,
    }
    settings = load_settings(flags, config)
    with fetching() as on_progress:
        client = OffloadClient(
            settings.server,
            settings.model,
            policy=parse_policy(settings.policy),
            deadline=settings.deadline,
            codecs=settings.codecs,
            max_error=settings.max_error,
            min_agreement=settings.min_agreement,
            reply_codec=settings.reply_codec,
            engine=settings.engine,
            precision=settings.precision,
            provider=settings.provider,
            exact=settings.exact,
            threads=settings.threads,
            cache=settings.cache,
            latency_folder=settings.latency_folder,
            accuracy_folder=settings.accuracy_folder,
            connect_timeout=settings.connect_timeout,
            metrics_listen=settings.metrics_listen,
            hedge=settings.hedge,
            insecure=settings.insecure,
            decision_log=settings.decision_log,
            on_progress=on_progress,
        )
    with client:
        batch = load_images(image, client.graph.inputs[0])
        client.wait_ready(settings.connect_timeout)
        for _ in range(repeat):
            result = client.infer(batch)
            classes = [top(scores, client.labels) for scores in result.output]
            if as_json:
                print(json.dumps(document(settings.model, image, classes, result)), flush=True)
            else:
                show(settings.model, image, classes, result)


@app.command()
def plan(
    model: Model = None,
    bandwidth: Annotated[float | None, typer.Option(help="Uplink in Mbit/s; measured if absent.")] = None,
    load: Annotated[
        float | None, typer.Option(help="Slow-down of the server, 1 when idle; asked for if the link is measured.")
    ] = None,
    round_trip: Annotated[float, typer.Option(min=0, help="Round trip in ms, with --bandwidth.")] = 1.0,
    backlog: Annotated[float | None, typer.Option(min=0, help="Milliseconds until the server starts a job.")] = None,
    device_slow_down: Annotated[float, typer.Option(help="How much slower than idle this device is.")] = 1.0,
    plot: Annotated[Path | None, typer.Option(help="Picture to draw, such as plan.png.")] = None,
    codecs: Codecs = None,
    accuracy_folder: AccuracyFolder = None,
    every: Annotated[bool, typer.Option("--all", help="All cuts, not only those that can win.")] = False,
    as_json: Json = False,
    server: ServerOption = None,
    engine: console.EngineName = None,
    precision: console.Precision = None,
    provider: console.Provider = None,
    threads: console.Threads = None,
    cache: Cache = None,
    latency_folder: console.LatencyFolder = None,
    connect_timeout: ConnectTimeout = None,
    config: Config = None,
) -> None:
    """Says which cut a link and a load call for, and why: a table of plans, and a picture.

    Without --bandwidth, the links to the servers and their loads are measured. Nothing is inferred.
    """
    for name, value in (("bandwidth", bandwidth), ("load", load), ("device-slow-down", device_slow_down)):
        if value is not None and not 0 < value < float("inf"):
            raise SettingsError(f"{name}: expected a number above 0, got {value}")
    flags: dict[str, object] = {
        "server": server,
        "model": model,
        "engine": engine,
        "precision": precision,
        "provider": provider,
        "codecs": codecs,
        "accuracy_folder": accuracy_folder,
    }
    flags |= {"threads": threads, "cache": cache, "latency_folder": latency_folder}
    settings = load_settings({**flags, "connect_timeout": connect_timeout}, config)
    with fetching() as on_progress:
        networks = look_up(
            settings.model,
            settings.server,
            cache=_cache(settings),
            latency_folder=_latency_folder(settings),
            engine=settings.engine_choice,
            codecs=AllowedCodecs(settings.codecs).names,
            accuracy_folder=_accuracy_folder(settings),
            timeout_seconds=settings.connect_timeout,
            measure=bandwidth is None,
            on_progress=on_progress,
        )
    views = []
    for network in networks:
        if network.link is not None and network.load is not None:
            link, known = network.link, network.load
        else:
            assert bandwidth is not None
            link, known = LinkReading(round_trip * 1e-3, 8e-6 / bandwidth), ServerLoad(1.0, 0.0)
        if load is not None:
            known = known._replace(slow_down=load)
        if backlog is not None:
            known = known._replace(backlog_seconds=backlog * 1e-3)
        views.append(View(network, State(link, known, device_slow_down)))
    costs = [cost for cost in plan_costs(views) if every or cost.can_win or cost.chosen]
    if as_json:
        for cost in costs:
            print(json.dumps({"model": settings.model, **row(cost)}))
    else:
        show_plans(views, costs)
    if plot is not None:
        chosen = next(cost.server for cost in costs if cost.chosen)
        draw(next((view for view in views if view.network.server == chosen), views[0]), plot)
        print(f"drawn in {plot}", file=sys.stderr)


@app.command()
def accuracy(
    images: Annotated[list[Path], typer.Option(help="Folder of pictures, or a picture; may be repeated.")],
    model: Model = None,
    server: ServerOption = None,
    engine: console.EngineName = None,
    precision: console.Precision = None,
    provider: console.Provider = None,
    reference: Annotated[
        str | None, typer.Option(help="Engine to compare with, in exact precision; this device's if absent.")
    ] = None,
    codecs: Codecs = None,
    reply_codec: ReplyCodec = None,
    crops: Annotated[
        int | None, typer.Option(min=1, help="How often each picture counts: whole, then random parts; 200 in all.")
    ] = None,
    threads: console.Threads = None,
    cache: Cache = None,
    accuracy_folder: AccuracyFolder = None,
    connect_timeout: ConnectTimeout = None,
    as_json: Json = False,
    config: Config = None,
) -> None:
    """Measures what codecs, lower precision and other engines do to the answers, on your own pictures.

    Every plan that can win is run, with every codec; clients go by the result when --max-error or --min-agreement says
    how much a codec may change.
    """
    flags = {"model": model, "server": server, "engine": engine, "precision": precision, "provider": provider}
    flags |= {"codecs": codecs, "reply_codec": reply_codec, "accuracy_folder": accuracy_folder}
    settings = load_settings({**flags, "threads": threads, "cache": cache, "connect_timeout": connect_timeout}, config)
    pictures = pictures_in(images)
    times = usual_crops(len(pictures)) if crops is None else crops
    common: dict[str, Any] = {"threads": settings.threads, "cache": settings.cache}
    with fetching() as on_progress:
        client = OffloadClient(
            settings.server, settings.model, engine=settings.engine, precision=settings.precision,
            provider=settings.provider, hedge=False, on_progress=on_progress,
            codecs=tuple(CODECS) if settings.codecs is None else settings.codecs, reply_codec=settings.reply_codec,
            **common,
        )  # fmt: skip
    with (
        client,
        OffloadClient(
            settings.server,
            settings.model,
            engine=reference or settings.engine,
            policy="local",
            connect_timeout=settings.connect_timeout,
            **common,
        ) as exact,
    ):
        if not client.wait_ready(settings.connect_timeout):
            print("no server answers: the accuracy of this device alone is measured", file=sys.stderr)
        with console.progress("comparing") as tell:
            rows = list(measure_accuracy(client, exact, pictures, times, tell))
        kept = save_measured(
            _accuracy_folder(settings), client.digest, [row.measured for row in rows if not row.plan.is_local]
        )
        if as_json:
            for row in rows:
                print(json.dumps({"model": settings.model, **asdict(row), "plan": str(row.plan)}))
        else:
            show_accuracy(rows, client.engine, exact.engine, len(pictures), times)
        print(f"kept in {kept}, for clients with max_error or min_agreement", file=sys.stderr)
        if rows[0].pictures < LEAST_PICTURES:
            print(f"too few pictures for that: expected {LEAST_PICTURES}, crops among them", file=sys.stderr)


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
    flags = {"engine": engine, "precision": precision, "provider": provider, "threads": threads}
    settings = load_settings({**flags, "latency_folder": latency_folder}, config, needs_model=False)
    measurements = Measurements(calibrated_setup(settings.engine_choice), _latency_folder(settings))
    console.calibrate(measurements, show=show)


@app.command()
def profile(
    model: Model = None,
    server: ServerOption = None,
    engine: console.EngineName = None,
    precision: console.Precision = None,
    provider: console.Provider = None,
    threads: console.Threads = None,
    cache: Cache = None,
    latency_folder: console.LatencyFolder = None,
    connect_timeout: ConnectTimeout = None,
    config: Config = None,
) -> None:
    """Measures heads and tails of a model on this machine; the model is fetched when it is not cached."""
    flags: dict[str, object] = {
        "server": server,
        "model": model,
        "engine": engine,
        "precision": precision,
        "provider": provider,
    }
    flags |= {"threads": threads, "cache": cache, "latency_folder": latency_folder}
    settings = load_settings({**flags, "connect_timeout": connect_timeout}, config)
    seconds = settings.connect_timeout
    with contextlib.closing(Fleet(settings.server, timeout_seconds=seconds)) as fleet, fetching() as on_progress:
        connections = [edge.connection for edge in fleet]
        found = find_model(connections, settings.model, _cache(settings), seconds, on_progress)
    setup, stored = choose_engine(found.stored, settings.engine_choice)
    console.profile(Measurements(setup, _latency_folder(settings)), stored)


@app.command()
def replay(
    log: Annotated[Path, typer.Argument(help="File that --decision-log wrote.")],
    policy: Annotated[str | None, typer.Option(help=f"Decide by this policy instead: {', '.join(ADAPTIVE)}.")] = None,
    as_json: Json = False,
) -> None:
    """Makes logged decisions again, from what was known then, by the same policy or another one."""
    decisions = list(read_decisions(log))
    rows = summary(decisions, policy)
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    again = f"taken by {policy or 'the same policy'}"
    table = Table("model", "server", "plan", "taken", again, "mean latency, ms", box=None)
    for row in rows:
        mean = f"{row['seconds'] / row['taken'] * 1e3:.1f}" if row["taken"] else ""
        plan = str(PlanKey(row["cut"], row["codec"]))
        table.add_row(row["model"], row["server"], plan, str(row["taken"]), str(row["again"]), mean)
    out = Console(highlight=False)
    out.print(table)
    same = sum(decision.again() == decision.chosen for decision in decisions)
    out.print(f"{len(decisions)} decisions; made again from what was known, {same} are the same")


def _cache(settings: Settings) -> Path:
    return Path(settings.cache) if settings.cache else default_cache()


def _accuracy_folder(settings: Settings) -> Path:
    return Path(settings.accuracy_folder) if settings.accuracy_folder else default_accuracy_folder()


def _latency_folder(settings: Settings) -> Path | None:
    return Path(settings.latency_folder) if settings.latency_folder else None


def main() -> None:
    """Entry point."""
    console.run(app, "loadpart-device")
