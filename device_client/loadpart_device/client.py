"""The client: what an application embeds."""

from __future__ import annotations

import atexit
import contextlib
import functools
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Self

from loadpart_common import forks
from loadpart_common.engines.choice import DEFAULT, EXACT, EngineChoice
from loadpart_common.errors import ClientClosedError, OffloadError
from loadpart_common.planning.plan import DEFAULT_CODEC
from loadpart_common.store.engine_choice import choose_engine
from loadpart_common.wire.limits import DEFAULT_MAX_MESSAGE_BYTES
from loadpart_device.allowed_codecs import AllowedCodecs, default_accuracy_folder, read_measured
from loadpart_device.deciding.decision_log import DecisionLog
from loadpart_device.deciding.policies import make_policy
from loadpart_device.edges.fleet import Fleet
from loadpart_device.hedging import Hedging
from loadpart_device.inference import InferenceRunner
from loadpart_device.local import LocalRuntime
from loadpart_device.metrics import Metrics
from loadpart_device.model_cache import default_cache, find_model
from loadpart_device.planner import Planner
from loadpart_device.settings import check_deadline, check_metrics_listen, credentials_from, parse_servers

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from loadpart.v1 import offload_pb2
    from loadpart_common.graph import Graph
    from loadpart_common.planning.plan import PlanKey, Point
    from loadpart_common.tensors import Array
    from loadpart_common.wire.endpoint import Endpoint
    from loadpart_device.deciding.policies import Policy
    from loadpart_device.deciding.state import EdgeState
    from loadpart_device.edges.edge import Edge
    from loadpart_device.edges.link import LinkReading
    from loadpart_device.edges.load import ServerLoad
    from loadpart_device.result import Result


class OffloadClient:
    """Runs one model on this device, on an edge server, or cut between the two. Thread-safe.

    The model is fetched from a server when it is not cached, and its segments are built in the background; an
    inference waits only for those that it needs. Of several servers each inference goes to the one that is predicted
    to answer first. When a server cannot be reached, or fails, another one takes its place, or the device computes
    alone. A client does not survive a fork of the process.
    """

    def __init__(
        self,
        target: str | Endpoint | Sequence[str | Endpoint],
        model: str,
        *,
        policy: str | int = "load-aware",
        deadline: float | None = None,
        hedge: bool = True,
        codecs: Sequence[str] | None = None,
        max_error: float | None = None,
        min_agreement: float | None = None,
        reply_codec: str = DEFAULT_CODEC,
        engine: str = DEFAULT,
        precision: str = EXACT,
        provider: str = "",
        exact: bool = False,
        threads: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        latency_folder: str | os.PathLike[str] | None = None,
        accuracy_folder: str | os.PathLike[str] | None = None,
        connect_timeout: float = 5.0,
        segment_memory_bytes: int = 512 << 20,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        metrics_listen: str | None = None,
        insecure: bool = False,
        decision_log: str | os.PathLike[str] | None = None,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        """Connects, fetches the model if need be, and starts to build its segments.

        Args:
            target: The server: `HOST:PORT`, with credentials from the environment (see `credentials_from`), or an
                endpoint, which has its own; or several. `dns:///NAME:PORT` stands for all servers that the name leads
                to, and those that come and go later.
            model: Name of the model.
            policy: `load-aware`, `bandwidth-only`, `local`, `offload`, a cut (the number of layers to run here), or
                `CUT:CODEC`, such as `0:webp-lossless`.
            deadline: Seconds within which an answer is wanted, unless a call says otherwise. The server is told, and
                the device begins to finish itself in time, as far as that is possible.
            hedge: Whether the device also begins to finish itself when an answer is later than predicted by the margin
                of error of the predictions; the first of the two to finish counts. It costs at most 1 % of its time.
            codecs: Codecs that what crosses a cut may be written with, besides `raw`; by default those that lose
                nothing, so that outputs keep their bits. Naming one that does, such as `q8z`, allows it, unless
                `max_error` or `min_agreement` bounds what it may do.
            max_error: The most that an output may differ for a codec's sake, as a share of the largest output. Codecs
                that lose something are then used only where `loadpart-device accuracy` has found them within it.
            min_agreement: As `max_error`, but the least share of answers that must name the same class.
            reply_codec: Codec of the server's outputs.
            engine: `mindspore`, `onnxruntime`, `openvino`, or `auto` for the fastest of those that are installed, as
                measured for the model on this machine. By default MindSpore where it is installed, else as `auto`.
                `result.plan.exact` says whether the server's engine gives the same bits.
            precision: `exact`, or one that the engine offers, such as `bfloat16`, which is quicker and less precise;
                `loadpart-device accuracy` measures by how much.
            provider: What the engine computes on, such as `cuda`, `coreml` or `gpu`; the processor by default.
            exact: Whether to leave servers alone whose answers have other bits than this device's own.
            threads: Cores to compute on; all by default. Results have the same bits as the server's when it computes on
                as many.
            cache: Folder for fetched models; `~/.cache/loadpart/models` by default.
            latency_folder: Folder with what `calibrate` and `profile` measured of this machine;
                `~/.cache/loadpart/latency` by default.
            accuracy_folder: Folder with what `accuracy` measured; `~/.cache/loadpart/accuracy` by default.
            connect_timeout: Seconds to wait for the server before going on without it.
            segment_memory_bytes: Bound on the memory of built segments, weights left out.
            max_message_bytes: Largest message that is sent.
            metrics_listen: `HOST:PORT` for Prometheus metrics; none are served by default.
            insecure: Whether the metrics may be open to a network.
            decision_log: File to which every decision is added as a line of JSON, for `loadpart-device replay`.
            on_progress: Called with the bytes that have come and those of all, while a model is fetched.

        Raises:
            ModelNotFoundError: No server serves the model; or none can be reached, and the model is not cached.
            ModelError: The model is damaged, or the engine cannot run it.
            CutError: The policy is a cut that the network does not have.
            AccessError: No server lets this device in.
            SettingsError: A target, the policy, a codec, a bound, the engine or the metrics' address is none, a file
                of measurements is damaged, or this process is a fork of one that had a client.
        """
        endpoints = parse_servers(target, credentials_from())
        self._deadline = check_deadline(deadline)
        self._hedging = Hedging(is_on=hedge)
        if metrics_listen:
            check_metrics_listen(metrics_listen, insecure=insecure)
        self._closed = threading.Event()
        self._closing = threading.RLock()  # an application's signal handler may close while it closes
        with contextlib.ExitStack() as undo:
            self._fleet = fleet = Fleet(
                endpoints,
                timeout_seconds=connect_timeout,
                max_message_bytes=max_message_bytes,
                on_models=self._models_changed,
                is_quiet=lambda: self._local.is_quiet,
            )
            undo.callback(fleet.close)
            folder = Path(cache) if cache else default_cache()
            connections = [edge.connection for edge in fleet]
            found = find_model(connections, model, folder, connect_timeout, on_progress)
            for name, error in found.errors.items():
                fleet[name].availability.lost(error)
            setup, stored = choose_engine(found.stored, EngineChoice(engine, threads or 0, precision, provider))
            manifest = stored.manifest
            self._digest, self.labels, self._graph = manifest.digest, manifest.labels, stored.graph
            self._policy = make_policy(policy, self._graph)
            allowed = AllowedCodecs(codecs, max_error=max_error, min_agreement=min_agreement, reply=reply_codec)
            if allowed.is_bounded:
                measured = Path(accuracy_folder) if accuracy_folder else default_accuracy_folder()
                allowed.measured(read_measured(measured, self._digest))
            self._local = local = LocalRuntime(
                stored,
                setup,
                memory_limit_bytes=segment_memory_bytes,
                latency_folder=Path(latency_folder) if latency_folder else None,
                on_change=self._segments_changed,
            )
            undo.callback(local.close)
            self._log = DecisionLog(Path(decision_log), model) if decision_log else None
            if self._log:
                undo.callback(self._log.close)
            self._metrics = Metrics(model, fleet, self._hedging, metrics_listen) if metrics_listen else None
            undo.pop_all()
        alone = self._policy.uses_latency_model_only
        self._planner = Planner(model, self._digest, local, fleet, allowed, uses_latency_model_only=alone, exact=exact)
        self._runner = InferenceRunner(
            stored,
            model,
            local,
            fleet,
            self._planner,
            hedging=self._hedging,
            reply_codec=allowed.reply,
            log=self._log,
        )
        # An engine may tear itself down at exit, too, and hang whoever uses it after that. What is registered last runs
        # first, so closing is registered again once the engine is there.
        close_at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        atexit.register(close_at_exit)
        local.when_started(lambda: atexit.register(close_at_exit))
        local.build([self._graph.layer_count, *_fixed_cuts(self._policy)])
        fleet.start(self._planner.update)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def graph(self) -> Graph:
        """The network: its inputs, layers, outputs and cuts."""
        return self._graph

    @property
    def engine(self) -> str:
        """The engine of this device, in words: name, version, precision, threads."""
        return str(self._local.setup)

    @property
    def digest(self) -> str:
        """SHA-256 of the model file, in hexadecimal."""
        return self._digest

    @property
    def servers(self) -> tuple[EdgeState, ...]:
        """What is known of each server now: its plans, link and load, and why it should not be asked, if so."""
        return self._planner.world(1).edges

    @property
    def plans(self) -> tuple[Point, ...]:
        """The plans that may be chosen now, with their idle figures: built here and on the server, the local one last.

        Of several servers those of the one that was named first; see `servers`.
        With the policy `paper` as many, with figures from the latency models alone.
        """
        return self._planner.plans(self._fleet.first).points

    @property
    def winning_plans(self) -> list[PlanKey]:
        """Those of them that are the best for some link and load, with each of the client's codecs alone or with none.

        They are what `loadpart-device accuracy` measures.
        """
        return self._planner.winning(self._fleet.first)

    @property
    def policy(self) -> str:
        """Name of the policy. Another one may be set, by name or as a cut; it holds from the next inference on.

        Raises:
            SettingsError: There is none of that name.
            CutError: It is a cut that the network does not have.
            ClientClosedError: The client is closed.
        """
        return self._policy.name

    @policy.setter
    def policy(self, policy: str | int) -> None:
        self._check_usable()
        self._policy = make_policy(policy, self._graph)
        self._local.build(_fixed_cuts(self._policy))
        self._planner.use_latency_model_only(self._policy.uses_latency_model_only)

    @property
    def metrics_address(self) -> str | None:
        """Where the metrics are served; None when they are not."""
        return self._metrics.address if self._metrics else None

    @property
    def link(self) -> LinkReading | None:
        """The link to the (first) server as it was last measured; None as long as it is unknown."""
        first = self._fleet.first
        return first.link.reading if first else None

    @property
    def load(self) -> ServerLoad | None:
        """The (first) server's load as it is expected to be now; None as long as it is unknown."""
        first = self._fleet.first
        return first.load if first else None

    def wait_ready(self, timeout: float = 60.0) -> bool:
        """Waits until the link has been measured and the segments of all plans are built.

        With several servers, until one has been measured, and up to two seconds for others that seem to be there.

        Returns:
            Whether a server was there in time; without it, the device is ready to compute alone.

        Raises:
            ModelError: The model file is damaged, or the engine cannot start or build a segment.
            ClientClosedError: The client is closed.
        """
        self._check_usable()
        self._local.wait_built()
        return self._fleet.wait_measured(timeout)

    def network_changed(self) -> None:
        """Tells the client that the device has moved to another network, or back to one.

        Without this it finds out by itself, by its next transfers or probes; on a thin link, where probes must be few,
        that may take a minute. Until the link has been measured anew (see `wait_ready`) the device computes alone.

        Raises:
            ClientClosedError: The client is closed.
        """
        self._check_usable()
        self._fleet.network_changed()

    def infer(self, *inputs: Array, deadline: float | None = None) -> Result:
        """Runs the network; when a server fails, refuses or is late, another one or the device finishes.

        Args:
            inputs: One array for each input of the network, in order, of the dtype and shape in `graph.inputs`; for
                the networks of the zoo one uint8 array of shape (N, height, width, 3).
            deadline: Seconds within which an answer is wanted; the client's when None. An answer that comes later is
                given all the same, and its `late` is true.

        Raises:
            InputError: An array does not fit.
            ModelMismatchError: All servers hold other files under the model's name, and the policy is a certain plan.
            AccessError: No server lets this device in.
            ClientClosedError: The client is closed, by another thread perhaps while this call is under way; or it was
                made before this process was forked.
            ModelError: The engine of this device cannot start.
            SettingsError: The deadline is none.
        """
        try:
            self._check_usable()
            within = self._deadline if deadline is None else check_deadline(deadline)
            result = self._runner.run(self._policy, inputs, within)
        except OffloadError as error:
            if self._metrics and not forks.is_fork():  # whose locks may be held for ever
                self._metrics.failed(error)
            raise
        if self._metrics:
            self._metrics.succeeded(result)
        return result

    def close(self) -> None:
        """Ends the connection and the threads; an inference that is under way fails or finishes first.

        In a fork it does nothing: all of that is the parent's.
        """
        if forks.is_fork():
            return
        with self._closing:
            if self._closed.is_set():
                return
            self._closed.set()
            self._fleet.close()
            self._local.close()
            if self._metrics:
                self._metrics.close()
            if self._log:
                self._log.close()

    def _check_usable(self) -> None:
        if forks.is_fork():
            raise ClientClosedError(f"clients do not survive a fork: {forks.ADVICE}")
        if self._closed.is_set():
            raise ClientClosedError("the client was closed before this call: make another one")

    def _segments_changed(self) -> None:
        self._planner.update()

    def _models_changed(self, edge: Edge, models: dict[str, offload_pb2.ModelInfo]) -> None:
        self._planner.models_changed(edge, models)


def _fixed_cuts(policy: Policy) -> list[int]:
    """The cut that a policy always takes; none where it weighs them, or needs no server."""
    return [] if policy.wanted is None else [policy.wanted.cut]


def _close_if_alive(reference: weakref.ref[OffloadClient]) -> None:
    client = reference()
    if client is not None:
        client.close()
