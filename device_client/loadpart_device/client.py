"""The client: what an application embeds."""

from __future__ import annotations

import atexit
import functools
import logging
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from loadpart_common.errors import InputError, ModelNotFoundError, OffloadError, ServerError
from loadpart_common.graph import Value
from loadpart_common.latency.measurements import usable_cores
from loadpart_common.planning.plans import Plans, lower_hull, points
from loadpart_common.tensors import check_arrays
from loadpart_common.wire.framing import CODECS, DEFAULT_MAX_MESSAGE_BYTES
from loadpart_device.deciding.decision_log import DecisionLog
from loadpart_device.deciding.policies import Choice, World, make_policy, reply_bytes
from loadpart_device.edges.connection import Server
from loadpart_device.edges.monitor import Monitor
from loadpart_device.local import LocalRuntime
from loadpart_device.metrics import Metrics
from loadpart_device.model_cache import default_cache, find_model
from loadpart_device.result import Location, Plan, Result, Timings

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from loadpart.v1 import offload_pb2
    from loadpart_common.graph import Graph
    from loadpart_common.planning.plans import Point
    from loadpart_common.tensors import Array
    from loadpart_device.deciding.policies import ServerLoad
    from loadpart_device.edges.connection import TailReply
    from loadpart_device.edges.link import LinkReading
    from loadpart_device.local import Values

_CODEC = CODECS["raw"]
_UNBOUNDED_SECONDS = 60.0
"""Of a request when there is no deadline: a server that hangs must not hang the device."""

log = logging.getLogger(__name__)


class OffloadClient:
    """Runs one model, on this device, on an edge server, or cut between the two. Thread-safe.

    The model is fetched from the server when it is not cached, and its segments are built in the background; an
    inference waits only for those that it needs. When the server cannot be reached, or fails, the device computes
    alone.
    """

    def __init__(
        self,
        target: str,
        model: str,
        *,
        policy: str | int = "load-aware",
        deadline: float | None = None,
        threads: int | None = None,
        cache: str | os.PathLike[str] | None = None,
        latency_folder: str | os.PathLike[str] | None = None,
        connect_timeout: float = 5.0,
        segment_memory_bytes: int = 512 << 20,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        metrics_listen: str | None = None,
        decision_log: str | os.PathLike[str] | None = None,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        """Connects, fetches the model if need be, and starts to build its segments.

        Args:
            target: The server, `HOST:PORT`.
            model: Name of the model.
            policy: `load-aware`, `bandwidth-only`, `local`, `offload`, or a cut: the number of layers to run here.
            deadline: Seconds within which an answer is wanted. A server that is late is given up in time for the
                device to finish alone, as far as that is possible.
            threads: Cores to compute on; all by default. Results have the same bits as the server's when it computes on
                as many.
            cache: Folder for fetched models; `~/.cache/loadpart/models` by default.
            latency_folder: Folder with what `calibrate` and `profile` measured of this machine;
                `~/.cache/loadpart/latency` by default.
            connect_timeout: Seconds to wait for the server before going on without it.
            segment_memory_bytes: Bound on the memory of built segments, weights left out.
            max_message_bytes: Largest message that is sent.
            metrics_listen: `HOST:PORT` for Prometheus metrics; none are served by default.
            decision_log: File to which every decision is added as a line of JSON, for `loadpart-device replay`.
            on_progress: Called with the bytes that have come and those of all, while a model is fetched.

        Raises:
            ModelNotFoundError: The server does not serve the model; or it cannot be reached, and the model is not
                cached.
            ModelError: The model is damaged.
            CutError: The policy is a cut that the network does not have.
            SettingsError: The policy or the metrics' address is none, or a file of measurements is damaged.
        """
        self._closed = threading.Event()
        self._name = model
        self._deadline = deadline
        self._info: offload_pb2.ModelInfo | None = None
        self._server = Server(target, max_message_bytes)
        try:
            folder = Path(cache) if cache else default_cache()
            stored, _, why_not = find_model(self._server, model, folder, connect_timeout, on_progress)
            self._digest = stored.manifest.digest
            self.labels = stored.manifest.labels
            self._graph: Graph = stored.manifest.graph
            self._policy = make_policy(policy, self._graph)
            self._local = LocalRuntime(
                stored,
                threads=threads or usable_cores(),
                memory_limit_bytes=segment_memory_bytes,
                latency_folder=Path(latency_folder) if latency_folder else None,
                on_change=self._update_plans,
            )
        except BaseException:
            self._server.close()
            raise
        self._plans = Plans(self._points(None)[-1:])
        self._monitor = Monitor(self._server, self._on_models, lambda: self._local.is_quiet)
        if why_not is not None:
            self._monitor.failed(why_not)
        try:
            self._log = (
                DecisionLog(Path(decision_log), model, self._graph.whole, reply_bytes(self._graph))
                if decision_log
                else None
            )
            self._metrics = Metrics(model, self._monitor, metrics_listen) if metrics_listen else None
        except BaseException:
            self._server.close()
            self._local.close()
            raise
        # MindSpore tears itself down at exit too, and hangs whoever uses it after that. What is registered last runs
        # first, so closing is registered again once MindSpore is there.
        close_at_exit = functools.partial(_close_if_alive, weakref.ref(self))
        atexit.register(close_at_exit)
        self._local.when_started(lambda: atexit.register(close_at_exit))
        wanted = [] if isinstance(policy, str) else [policy]
        self._local.build([self._graph.whole, *wanted])
        self._monitor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def graph(self) -> Graph:
        """The network: its inputs, layers, outputs and cuts."""
        return self._graph

    @property
    def digest(self) -> str:
        """SHA-256 of the model file, in hexadecimal."""
        return self._digest

    @property
    def plans(self) -> tuple[Point, ...]:
        """The plans that may be chosen now, with their idle figures: built here and on the server, the local one last.

        With the policy `paper` as many, with figures from its own regressions.
        """
        return self._plans.points

    @property
    def policy(self) -> str:
        """Name of the policy. Another one may be set, by name or as a cut; it holds from the next inference on.

        Raises:
            SettingsError: There is none of that name.
            CutError: It is a cut that the network does not have.
        """
        return self._policy.name

    @policy.setter
    def policy(self, policy: str | int) -> None:
        self._policy = make_policy(policy, self._graph)
        if isinstance(policy, int):
            self._local.build([policy])
        self._update_plans()

    @property
    def metrics_address(self) -> str | None:
        """Where the metrics are served; None when they are not."""
        return self._metrics.address if self._metrics else None

    @property
    def link(self) -> LinkReading | None:
        """The link to the server as it was last measured; None as long as it is unknown."""
        return self._monitor.link.reading

    @property
    def load(self) -> ServerLoad | None:
        """The server's load as it is expected to be now; None as long as it is unknown."""
        return self._monitor.load

    def wait_ready(self, timeout: float = 60.0) -> bool:
        """Waits until the link has been measured and the segments of all plans are built.

        Returns:
            Whether the server was there in time; without it, the device is ready to compute alone.
        """
        self._local.wait_built()
        return self._monitor.wait_measured(timeout)

    def network_changed(self) -> None:
        """Tells the client that the device has moved to another network, or back to one.

        Without this it finds out by itself, by its next transfers or probes; on a thin link, where probes must be few,
        that may take a minute. Until the link has been measured anew (see `wait_ready`) the device computes alone.
        """
        self._monitor.network_changed()

    def infer(self, *inputs: Array) -> Result:
        """Runs the network.

        Args:
            inputs: One array for each input of the network, in order, of the dtype and shape in `graph.inputs`; for
                the six networks of the project one uint8 array of shape (N, height, width, 3).

        Raises:
            InputError: An array does not fit.
            ModelMismatchError: The server holds another file under the model's name.
            OffloadError: The server refused the request. When it fails or cannot be reached, there is no error: the
                device computes alone, and the plan's reason says so.
        """
        try:
            result = self._infer(inputs)
        except OffloadError as error:
            if self._metrics:
                self._metrics.failed(error)
            raise
        if self._metrics:
            self._metrics.succeeded(result)
        return result

    def close(self) -> None:
        """Ends the connection and the threads; an inference that is under way fails or finishes first."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._monitor.close()
        self._local.close()
        if self._metrics:
            self._metrics.close()
        if self._log:
            self._log.close()

    def _infer(self, inputs: tuple[Array, ...]) -> Result:
        started = time.perf_counter()
        if self._closed.is_set():
            raise InputError("the client is closed")
        arrays = [np.asarray(array) for array in inputs]
        batch = check_arrays(arrays, self._graph.inputs)
        values: Values = {Value(-1, index): array for index, array in enumerate(arrays)}
        checked = time.perf_counter()
        policy, plans, world = self._policy, self._plans, self._world()
        choice = policy.choose(plans, world, batch)
        decided = time.perf_counter()
        head = 0.0
        if choice.cut > 0:
            outputs, head = self._local.head(choice.cut, values, batch)
            values.update(outputs)
        reply: TailReply | None = None
        if choice.cut < self._graph.whole:
            choice, reply = self._finish(choice, values, batch, started)
        ended = time.perf_counter()
        timings = Timings(
            decide=decided - checked,
            head=head if reply else ended - decided,
            encode=reply.encode_seconds if reply else 0.0,
            network=reply.network_seconds if reply else 0.0,
            queue=reply.queue_seconds if reply else 0.0,
            tail=reply.tail_seconds if reply else 0.0,
            total=ended - started,
        )
        if self._log:
            self._log.write(policy.name, choice, plans, world, batch, timings)
        location: Location = "local" if reply is None else "split" if choice.cut else "offload"
        plan = Plan(choice.cut, location, _CODEC.name if reply else "", choice.predicted_seconds, choice.explain)
        return Result(tuple(values[value] for value in self._graph.outputs), plan, timings)

    def _world(self) -> World:
        return World(
            link=self._monitor.link.reading,
            load=self._monitor.load,
            device_slow_down=self._local.slow_down,
            unavailable=self._monitor.unavailable(),
        )

    def _finish(self, choice: Choice, values: Values, batch: int, started: float) -> tuple[Choice, TailReply | None]:
        """Has the server run the tail, or runs it here when the server fails; completes `values`."""
        cut = self._graph.cut(choice.cut)
        arrays = [values[value] for value in cut.live]
        try:
            reply = self._server.infer(
                self._name, self._digest, cut.index, arrays, _CODEC, self._patience(cut.index, batch, started)
            )
        except ServerError as error:
            self._monitor.failed(error)
            values.update(self._local.finish(cut.index, values, batch))
            why = f"local after cut {cut.index}: {error}"
            return Choice(self._graph.whole, choice.predicted_seconds, lambda: why), None
        values.update(zip(self._graph.segment(cut.index, self._graph.whole).outputs, reply.outputs, strict=True))
        self._monitor.served(reply)
        return choice, reply

    def _patience(self, cut: int, batch: int, started: float) -> float:
        """Seconds that the server may take: up to the deadline, less what finishing here would take."""
        if self._deadline is None:
            return _UNBOUNDED_SECONDS
        seconds = self._local.head_seconds
        alone = float(seconds[-1] - seconds[cut]) * batch * self._local.slow_down
        return max(self._deadline - (time.perf_counter() - started) - alone, 0.0)

    def _on_models(self, models: dict[str, offload_pb2.ModelInfo]) -> None:
        """Takes in what the server says of the model, and has heads built for its plans."""
        info = models.get(self._name)
        if info is None or info.digest != self._digest or len(info.tail_seconds) != self._graph.whole + 1:
            problem = ModelNotFoundError(f"the server no longer serves model {self._name!r} with this digest")
            log.warning("%s; the device computes alone", problem)
            info = None
        self._info = info
        self._update_plans()
        if info is not None:
            ready = set(info.ready_cuts)
            hull = lower_hull([point for point in self._points(info) if point.cut in ready or not point.remote])
            self._local.build([point.cut for point in hull])

    def _update_plans(self) -> None:
        """Makes the plans anew: those whose head is built here and whose tail is built there, and the local one."""
        info, built = self._info, self._local.ready_cuts
        ready = built & set(info.ready_cuts) if info else frozenset[int]()
        self._plans = Plans([point for point in self._points(info) if point.cut in ready or not point.remote])

    def _points(self, info: offload_pb2.ModelInfo | None) -> tuple[Point, ...]:
        """The points of all cuts, as the policy predicts them; tails cost nothing as long as the server is unknown."""
        heads = self._local.regressed_head_seconds if self._policy.regressed else self._local.head_seconds
        if info is None:
            return points(self._graph, heads, np.zeros(self._graph.whole + 1))
        return points(
            self._graph, heads, np.array(info.regressed_tail_seconds if self._policy.regressed else info.tail_seconds)
        )


def _close_if_alive(reference: weakref.ref[OffloadClient]) -> None:
    client = reference()
    if client is not None:
        client.close()
