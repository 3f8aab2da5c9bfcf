"""One inference: decide, run the head, have the tail run, and finish alone when that fails or is late."""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from loadpart_common.codecs.registry import CODECS
from loadpart_common.errors import (
    AccessError,
    AuthenticationError,
    ClientClosedError,
    DeadlineError,
    ModelMismatchError,
    OffloadError,
)
from loadpart_common.graph import Value
from loadpart_common.planning.plan import DEFAULT_CODEC
from loadpart_common.tensors import check_arrays
from loadpart_device.deciding.state import Choice, Chosen
from loadpart_device.edges.connection import Tail
from loadpart_device.hedging import slack_seconds
from loadpart_device.result import Location, Plan, Result, Timings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    from loadpart_common.planning.plan import PlanKey
    from loadpart_common.store.model_store import StoredModel
    from loadpart_common.tensors import Array
    from loadpart_device.deciding.decision_log import DecisionLog
    from loadpart_device.deciding.policies import Policy
    from loadpart_device.deciding.state import World
    from loadpart_device.edges.connection import PendingReply, TailReply
    from loadpart_device.edges.edge import Edge
    from loadpart_device.edges.fleet import Fleet
    from loadpart_device.hedging import Hedging
    from loadpart_device.local import LocalRuntime, Values
    from loadpart_device.planner import Planner

_UNBOUNDED_SECONDS = 60.0
"""Of a request when there is no deadline: a server that hangs must not hang the device."""


class _Finished(NamedTuple):
    """How the tail of an inference came about.

    Attributes:
        choice: What was done in the end.
        reply: The server's answer; None when the device finished.
        hedged: Whether the device began its own tail while the answer was out.
    """

    choice: Choice
    reply: TailReply | None = None
    hedged: bool = False


class _Inference(NamedTuple):
    """An inference under way.

    Attributes:
        started: When it began, on the clock `time.perf_counter`.
        deadline_seconds: Seconds within which an answer is wanted; None when any time will do.
        batch: Items of the batch.
        values: The network's inputs, and what has been computed so far.
    """

    started: float
    deadline_seconds: float | None
    batch: int
    values: Values

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self.started


class InferenceRunner:
    """Runs inferences of one model. Thread-safe."""

    def __init__(
        self,
        stored: StoredModel,
        name: str,
        local: LocalRuntime,
        fleet: Fleet,
        planner: Planner,
        *,
        hedging: Hedging,
        reply_codec: str,
        log: DecisionLog | None,
    ) -> None:
        """Makes a runner.

        Args:
            stored: The model.
            name: What the servers call it.
            local: Runs heads, and whole networks.
            fleet: The servers.
            planner: Knows the plans.
            hedging: Decides when the device begins its own tail.
            reply_codec: Codec of answers, where a server knows it.
            log: Is told each decision; None when there is no log.
        """
        self._graph = stored.graph
        self._digest = stored.manifest.digest
        self._name = name
        self._local = local
        self._fleet = fleet
        self._planner = planner
        self._hedging = hedging
        self._reply_codec = reply_codec
        self._log = log

    def run(self, policy: Policy, inputs: Sequence[Array], deadline_seconds: float | None) -> Result:
        """Runs the network on inputs, by a policy.

        Raises:
            InputError: An array does not fit.
            AccessError: No server lets this device in.
            ModelMismatchError: The server holds another file.
        """
        started = time.perf_counter()
        arrays = [np.asarray(array) for array in inputs]
        batch = check_arrays(arrays, self._graph.inputs)
        if policy.needs_server and (refusal := self._fleet.refusal) is not None:
            raise refusal
        values: Values = {Value(-1, index): array for index, array in enumerate(arrays)}
        inference = _Inference(started, deadline_seconds, batch, values)
        checked = time.perf_counter()
        world = self._planner.world(batch)
        choice = self._fitting(policy.choose(world, batch), world, batch)
        decided = time.perf_counter()
        head, plan = 0.0, choice.chosen.plan
        if plan.cut > 0:
            outputs, head = self._local.head(plan.cut, values, batch)
            values.update(outputs)
        finished = _Finished(choice) if plan.is_local else self._finish(choice, world, inference)
        ended = time.perf_counter()
        reply, choice = finished.reply, finished.choice
        timings = Timings(
            decide=decided - checked,
            head=head if reply else ended - decided,
            encode=reply.encode_seconds if reply else 0.0,
            network=reply.network_seconds if reply else 0.0,
            queue=reply.queue_seconds if reply else 0.0,
            decode=reply.decode_seconds if reply else 0.0,
            tail=reply.tail_seconds if reply else 0.0,
            total=ended - started,
        )
        if self._log:
            self._log.write(policy.name, choice, world, batch, timings.total)
        edge, taken = choice.chosen
        exact = reply is None or self._is_exact(edge, taken)
        location: Location = "local" if taken.is_local else "split" if taken.cut else "offload"
        return Result(
            tuple(values[value] for value in self._graph.outputs),
            Plan(taken.cut, location, taken.codec, edge, choice.predicted_seconds, exact, choice.reason),
            timings,
            late=deadline_seconds is not None and timings.total > deadline_seconds,
            hedged=finished.hedged,
            resumed=reply is None and not plan.is_local,
        )

    def _is_exact(self, edge: str, plan: PlanKey) -> bool:
        """Whether outputs of a server have the bits that this device would have computed."""
        lossless = CODECS[plan.codec].is_lossless and CODECS[self._reply_codec].is_lossless
        return lossless and self._planner.is_exact(self._fleet[edge])

    def _fitting(self, choice: Choice, world: World, batch: int) -> Choice:
        """A choice, or the local plan when the server would not take such a request, as only a fixed plan's may be."""
        name, plan = choice.chosen
        if plan.is_local:
            return choice
        edge, plans = self._fleet[name], self._planner.plans(name)
        position = plans.position(plan)
        nbytes = self._graph.cut(plan.cut).nbytes() if position is None else plans.points[position].uplink_bytes
        why = edge.why_not_read(plan.codec) or edge.why_too_large(nbytes * batch, batch)
        return choice if why is None else self._alone(choice, world, f"local: {why}")

    def _finish(self, choice: Choice, world: World, inference: _Inference) -> _Finished:
        """Has the server run the tail, or runs it here when the server fails or is late; completes the values."""
        name, plan = choice.chosen
        edge = self._fleet[name]
        is_try = edge.availability.begin()
        try:
            try:
                return self._with_server(edge, choice, world, inference, is_try=is_try)
            except AuthenticationError:
                if not edge.connection.renew():
                    raise
                return self._with_server(edge, choice, world, inference, is_try=is_try)
        except (AccessError, ModelMismatchError) as error:
            edge.failed(error)
            raise
        except ClientClosedError:
            raise
        except OffloadError as error:  # whatever else is wrong with the server, the device can do without it
            edge.failed(error)
            inference.values.update(self._local.finish(plan.cut, inference.values, inference.batch))
            return _Finished(self._alone(choice, world, f"local after cut {plan.cut}: {error}"))

    def _with_server(
        self, edge: Edge, choice: Choice, world: World, inference: _Inference, *, is_try: bool
    ) -> _Finished:
        """Has the server run the tail, and from some moment on the device too; the first to finish counts.

        A server that has failed is tried with the device beginning at once, so that a try delays nothing.

        Raises:
            OffloadError: The server failed before the device began.
        """
        plan, batch = choice.chosen.plan, inference.batch
        pending = self._ask(edge, plan, inference)
        ready = threading.Event()
        pending.when_done(ready.set)
        patience = self._patience(edge, choice, inference)
        begins = 0.0 if is_try and self._hedging.is_on else patience
        if not ready.wait(None if math.isinf(begins) else max(begins - inference.elapsed, 0.0)):
            started = time.perf_counter()
            own = self._local.start_to_finish(plan.cut, inference.values, batch)
            own.add_done_callback(lambda _: ready.set())
            ready.wait()
            if not pending.is_done:
                is_early = inference.elapsed < patience
                return self._taken_over(edge, choice, world, inference, (pending, own), is_early=is_early)
            try:
                reply = pending.result()
            except OffloadError as error:
                edge.failed(error)
                inference.values.update(own.result())
                why = f"local after cut {plan.cut}: {error}"
                return _Finished(self._alone(choice, world, why), hedged=True)
            if not own.cancel():
                own.add_done_callback(lambda _: self._hedging.wasted(time.perf_counter() - started))
            return self._served(edge, choice, inference, reply, hedged=True)
        return self._served(edge, choice, inference, pending.result())

    def _ask(self, edge: Edge, plan: PlanKey, inference: _Inference) -> PendingReply:
        reply_codec = self._reply_codec if edge.why_not_read(self._reply_codec) is None else DEFAULT_CODEC
        tail = Tail.of(self._graph, self._name, self._digest, plan, inference.batch, reply_codec)
        left = _UNBOUNDED_SECONDS
        if inference.deadline_seconds is not None:
            left = max(inference.deadline_seconds - inference.elapsed, 0.0)
        live = self._graph.cut(plan.cut).live
        return edge.connection.start(tail, [inference.values[value] for value in live], left)

    def _patience(self, edge: Edge, choice: Choice, inference: _Inference) -> float:
        """Seconds from its start after which the device begins to finish an inference itself."""
        plan = choice.chosen.plan
        alone = self._alone_seconds(inference.batch)
        resumes = self._local.can_resume(plan.cut, inference.batch)
        seconds = self._local.head_seconds
        tail = alone * float(1 - seconds[plan.cut] / seconds[-1]) if resumes else alone
        return self._hedging.wait_seconds(
            choice.predicted_seconds, edge.lateness.margin_seconds, alone, tail, inference.deadline_seconds
        )

    def _alone_seconds(self, batch: int) -> float:
        """What the device takes for the whole network now."""
        return float(self._local.head_seconds[-1]) * batch * self._local.slow_down

    def _served(
        self, edge: Edge, choice: Choice, inference: _Inference, reply: TailReply, *, hedged: bool = False
    ) -> _Finished:
        """Takes in the server's answer."""
        outputs = self._graph.tail(choice.chosen.plan.cut).outputs
        inference.values.update(zip(outputs, reply.outputs, strict=True))
        if choice.predicted_seconds is not None:
            # What is later than this came of a fault: the margin is about the days between faults.
            most = choice.predicted_seconds + slack_seconds(self._alone_seconds(inference.batch))
            edge.lateness.record(choice.predicted_seconds, min(inference.elapsed, most))
        edge.reply_received(reply)
        self._planner.encoded(choice.chosen.plan, reply.encoded_bytes, reply.encode_seconds, inference.batch)
        return _Finished(choice, reply, hedged)

    def _taken_over(
        self,
        edge: Edge,
        choice: Choice,
        world: World,
        inference: _Inference,
        racing: tuple[PendingReply, Future[Values]],
        *,
        is_early: bool,
    ) -> _Finished:
        """Takes the device's own outputs, which came before the server's.

        Where that is no wonder, since the device began at once, the answer still tells whether the server is well.
        """
        pending, own = racing
        inference.values.update(own.result())
        predicted, plan = choice.predicted_seconds, choice.chosen.plan
        expected = "" if predicted is None else f", {predicted * 1e3:.1f} ms predicted"
        error = DeadlineError(f"no answer after {inference.elapsed * 1e3:.1f} ms{expected}")
        if is_early:
            pending.when_done(lambda: self._learn(edge, pending))
        else:
            pending.cancel()
            edge.late(error)
        return _Finished(self._alone(choice, world, f"local after cut {plan.cut}: {error}"), hedged=True)

    @staticmethod
    def _learn(edge: Edge, pending: PendingReply) -> None:
        """Takes in an answer that came after the device's own."""
        try:
            edge.reply_received(pending.result())
        except OffloadError as error:
            edge.failed(error)

    @staticmethod
    def _alone(choice: Choice, world: World, why: str) -> Choice:
        """The choice to do without a server."""
        return Choice(Chosen("", world.local), choice.predicted_seconds, why, choice.previous)
