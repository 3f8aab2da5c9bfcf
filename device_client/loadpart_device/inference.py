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
from loadpart_common.planning.plan import DEFAULT_CODEC, local_plan
from loadpart_common.tensors import check_arrays
from loadpart_device.deciding.state import Choice, Chosen, Resumed
from loadpart_device.edges.connection import Tail
from loadpart_device.hedging import slack_seconds
from loadpart_device.result import Location, Plan, Result, Timings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future

    from loadpart_common.planning.plan import PlanKey
    from loadpart_common.store.model_store import StoredModel
    from loadpart_common.tensors import Array
    from loadpart_device.deciding.decision_log import DecisionLog
    from loadpart_device.deciding.policies import Policy
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
        edge: The server that answered; None when the device finished.
        reply: Its answer.
        hedged: Whether the device began its own tail while the answer was out.
    """

    choice: Choice
    edge: Edge | None = None
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
        self._local_plan = local_plan(stored.graph)
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
            ModelMismatchError: All servers hold other files, and the policy is a plan of the application's.
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
        choice = policy.choose(world, batch)
        if policy.wanted is not None and choice.chosen.plan.is_local and (foreign := self._fleet.foreign) is not None:
            # Every server has said that it holds another file. What it says of the very request, the application gets.
            choice = Choice(Chosen(foreign.name, policy.wanted), None, f"policy {policy.name}", choice.previous)
        plan, edge = choice.chosen.plan, None
        if not plan.is_local:
            edge = self._fleet[choice.chosen.edge]
            if (why := self._why_not_fitting(edge, plan, batch)) is not None:
                choice, edge = self._alone(choice, f"local: {why}"), None
        decided = time.perf_counter()
        head = self._run_head(choice.chosen.plan.cut, inference)
        finished = _Finished(choice) if edge is None else self._finish(policy, edge, choice, inference)
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
        server, taken = choice.chosen
        exact = finished.edge is None or self._is_exact(finished.edge, taken)
        location: Location = "local" if taken.is_local else "split" if taken.cut else "offload"
        return Result(
            tuple(values[value] for value in self._graph.outputs),
            Plan(taken.cut, location, taken.codec, server, choice.predicted_seconds, exact, choice.reason),
            timings,
            late=deadline_seconds is not None and timings.total > deadline_seconds,
            hedged=finished.hedged,
            resumed=reply is None and edge is not None,
        )

    def _run_head(self, cut: int, inference: _Inference) -> float:
        """Runs the head of a cut; gives the seconds that it took."""
        if cut == 0:
            return 0.0
        outputs, seconds = self._local.head(cut, inference.values, inference.batch)
        inference.values.update(outputs)
        return seconds

    def _is_exact(self, edge: Edge, plan: PlanKey) -> bool:
        """Whether outputs of a server have the bits that this device would have computed."""
        lossless = CODECS[plan.codec].is_lossless and CODECS[self._reply_codec].is_lossless
        return lossless and self._planner.is_exact(edge)

    def _why_not_fitting(self, edge: Edge, plan: PlanKey, batch: int) -> str | None:
        """Why a server would not take such a request, as it may only be with a fixed plan; None when it would."""
        plans = self._planner.plans(edge)
        position = plans.position(plan)
        nbytes = self._graph.cut(plan.cut).nbytes() if position is None else plans.points[position].uplink_bytes
        return edge.why_not_read(plan.codec) or edge.why_too_large(nbytes * batch, batch)

    def _finish(self, policy: Policy, edge: Edge, choice: Choice, inference: _Inference) -> _Finished:
        """Has a server run the tail; when it fails, another one or the device, whichever is to answer first.

        The values are complete afterwards. A server that is late competes with the device: see `_with_server`.
        """
        failed: dict[str, str] = {}
        while True:
            try:
                return self._asked(edge, choice, inference)
            except ClientClosedError:
                raise
            except OffloadError as error:  # whatever is wrong with the server, others or the device can do without it
                edge.failed(error)
                edge.is_foreign |= isinstance(error, ModelMismatchError)
                failed[edge.name] = str(error)
                told = error
            cut = choice.chosen.plan.cut
            following = self._choose_again(policy, choice, inference, failed)
            if following is None:
                # What a person has to mend is told, unless there is a server of which it is not true.
                if isinstance(told, AccessError) and self._fleet.refusal is not None:
                    raise told
                if isinstance(told, ModelMismatchError) and self._fleet.foreign is not None:
                    raise told
                inference.values.update(self._local.finish(cut, inference.values, inference.batch))
                why = str(told) if len(failed) == 1 else _told(failed)
                return _Finished(self._alone(choice, f"local after cut {cut}: {why}"))
            edge, choice = following
            if choice.chosen.plan.cut != cut:
                self._run_head(choice.chosen.plan.cut, inference)

    def _choose_again(
        self, policy: Policy, choice: Choice, inference: _Inference, failed: Mapping[str, str]
    ) -> tuple[Edge, Choice] | None:
        """The server to ask after one has failed, and what for; None when the device is to finish alone."""
        cut, batch = choice.chosen.plan.cut, inference.batch
        slow_down = self._local.slow_down * batch
        head = float(self._local.head_seconds[cut]) * slow_down
        resumed = Resumed(cut, head, self._tail_seconds(cut, batch))
        following = policy.choose_again(self._planner.world(batch), batch, resumed, failed)
        if following is None:
            return None
        edge = self._fleet[following.chosen.edge]
        if self._why_not_fitting(edge, following.chosen.plan, batch) is not None:
            return None
        seconds = following.predicted_seconds
        return edge, following._replace(
            predicted_seconds=None if seconds is None else inference.elapsed + seconds,
            reason=f"{following.reason} with {edge.name}, since {_told(failed)}",
            previous=choice.previous,
        )

    def _asked(self, edge: Edge, choice: Choice, inference: _Inference) -> _Finished:
        """Has a server run the tail, with a credential that is renewed if it has expired."""
        is_try = edge.availability.begin()
        try:
            return self._with_server(edge, choice, inference, is_try=is_try)
        except AuthenticationError:
            if not edge.connection.renew():
                raise
            return self._with_server(edge, choice, inference, is_try=is_try)

    def _with_server(self, edge: Edge, choice: Choice, inference: _Inference, *, is_try: bool) -> _Finished:
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
                return self._taken_over(edge, choice, inference, (pending, own), is_early=is_early)
            try:
                reply = pending.result()
            except OffloadError as error:
                edge.failed(error)
                inference.values.update(own.result())
                why = f"local after cut {plan.cut}: {error}"
                return _Finished(self._alone(choice, why), hedged=True)
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
        alone, tail = self._alone_seconds(inference.batch), self._tail_seconds(plan.cut, inference.batch)
        return self._hedging.wait_seconds(
            choice.predicted_seconds, edge.lateness.margin_seconds, alone, tail, inference.deadline_seconds
        )

    def _tail_seconds(self, cut: int, batch: int) -> float:
        """What the device takes now to finish after a cut."""
        alone, seconds = self._alone_seconds(batch), self._local.head_seconds
        return alone * float(1 - seconds[cut] / seconds[-1]) if self._local.can_resume(cut, batch) else alone

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
        return _Finished(choice, edge, reply, hedged)

    def _taken_over(
        self,
        edge: Edge,
        choice: Choice,
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
        return _Finished(self._alone(choice, f"local after cut {plan.cut}: {error}"), hedged=True)

    @staticmethod
    def _learn(edge: Edge, pending: PendingReply) -> None:
        """Takes in an answer that came after the device's own."""
        try:
            edge.reply_received(pending.result())
        except OffloadError as error:
            edge.failed(error)

    def _alone(self, choice: Choice, why: str) -> Choice:
        """The choice to do without a server."""
        return Choice(Chosen("", self._local_plan), choice.predicted_seconds, why, choice.previous)


def _told(failed: Mapping[str, str]) -> str:
    """Why servers have failed, one after the other."""
    return "; ".join(f"{name}: {why}" for name, why in failed.items())
