"""One inference: decide, run the head, have the tail run, or finish alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from loadpart_common.errors import AccessError, ServerError
from loadpart_common.graph import Value
from loadpart_common.tensors import check_arrays
from loadpart_device.deciding.state import Choice, Chosen
from loadpart_device.result import Location, Plan, Result, Timings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadpart_common.planning.plan import PlanKey
    from loadpart_common.store.manifest import Manifest
    from loadpart_common.tensors import Array
    from loadpart_device.deciding.decision_log import DecisionLog
    from loadpart_device.deciding.policies import Policy
    from loadpart_device.deciding.state import World
    from loadpart_device.edges.connection import TailReply
    from loadpart_device.edges.fleet import Fleet
    from loadpart_device.local import LocalRuntime, Values
    from loadpart_device.planner import Planner

_UNBOUNDED_SECONDS = 60.0
"""Of a request when there is no deadline: a server that hangs must not hang the device."""


class InferenceRunner:
    """Runs inferences of one model. Thread-safe."""

    def __init__(
        self,
        manifest: Manifest,
        name: str,
        local: LocalRuntime,
        fleet: Fleet,
        planner: Planner,
        *,
        deadline_seconds: float | None,
        log: DecisionLog | None,
    ) -> None:
        """Makes a runner.

        Args:
            manifest: The model.
            name: What the servers call it.
            local: Runs heads, and whole networks.
            fleet: The servers.
            planner: Knows the plans.
            deadline_seconds: Seconds within which an answer is wanted; None when any time will do.
            log: Is told each decision; None when there is no log.
        """
        self._graph = manifest.graph
        self._digest = manifest.digest
        self._name = name
        self._local = local
        self._fleet = fleet
        self._planner = planner
        self._deadline_seconds = deadline_seconds
        self._log = log

    def run(self, policy: Policy, inputs: Sequence[Array]) -> Result:
        """Runs the network on inputs, by a policy.

        Raises:
            InputError: An array does not fit.
            AccessError: No server lets this device in.
            OffloadError: The server refused the request.
        """
        started = time.perf_counter()
        arrays = [np.asarray(array) for array in inputs]
        batch = check_arrays(arrays, self._graph.inputs)
        if policy.needs_server and (refusal := self._fleet.refusal) is not None:
            raise refusal
        values: Values = {Value(-1, index): array for index, array in enumerate(arrays)}
        checked = time.perf_counter()
        world = self._planner.world()
        choice = policy.choose(world, batch)
        decided = time.perf_counter()
        head, plan = 0.0, choice.chosen.plan
        if plan.cut > 0:
            outputs, head = self._local.head(plan, values, batch)
            values.update(outputs)
        reply: TailReply | None = None
        if not plan.is_local:
            choice, reply = self._finish(choice, world, values, batch, started)
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
            self._log.write(policy.name, choice, world, batch, timings.total)
        edge, plan = choice.chosen
        location: Location = "local" if plan.is_local else "split" if plan.cut else "offload"
        taken = Plan(plan.cut, location, plan.codec, edge, choice.predicted_seconds, choice.reason)
        return Result(tuple(values[value] for value in self._graph.outputs), taken, timings)

    def _finish(
        self, choice: Choice, world: World, values: Values, batch: int, started: float
    ) -> tuple[Choice, TailReply | None]:
        """Has the server run the tail, or runs it here when the server fails; completes `values`."""
        name, plan = choice.chosen
        edge = self._fleet[name]
        arrays = [values[value] for value in self._graph.cut(plan.cut).live]
        patience = self._patience(plan, batch, started)
        try:
            reply = edge.connection.infer(self._name, self._digest, plan, arrays, patience)
        except AccessError as error:
            edge.failed(error)
            raise
        except ServerError as error:
            edge.failed(error)
            values.update(self._local.finish(plan, values, batch))
            why = f"local after cut {plan.cut}: {error}"
            return Choice(Chosen("", world.local), choice.predicted_seconds, why, choice.previous), None
        values.update(zip(self._graph.tail(plan.cut).outputs, reply.outputs, strict=True))
        edge.reply_received(reply)
        return choice, reply

    def _patience(self, plan: PlanKey, batch: int, started: float) -> float:
        """Seconds that the server may take: up to the deadline, less what finishing here would take."""
        if self._deadline_seconds is None:
            return _UNBOUNDED_SECONDS
        seconds = self._local.head_seconds
        alone = float(seconds[-1] - seconds[plan.cut]) * batch * self._local.slow_down
        return max(self._deadline_seconds - (time.perf_counter() - started) - alone, 0.0)
