"""What an inference gives: outputs, the plan, and where the time went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from loadpart_common.tensors import Array
    from loadpart_device.deciding.state import Explanation

Location = Literal["local", "split", "offload"]

PHASES = ("decide", "head", "encode", "network", "queue", "decode", "tail", "total")
"""The names of what `Timings` has, in order."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How an inference was run.

    Attributes:
        cut: Layers that ran on the device.
        location: `local`, `split` or `offload`.
        codec: How the tensors at the cut were written; empty when nothing was sent.
        server: The server that took part; empty when none did.
        predicted_seconds: Latency that the decision expected; None when it had nothing to go by.
        exact: Whether the outputs have the bits that this device would have computed alone: it did, or the server's
            engine is the same, in version, precision and, where that matters, threads, and the codecs lose nothing.
    """

    cut: int
    location: Location
    codec: str
    server: str
    predicted_seconds: float | None
    exact: bool
    _reason: str | Explanation

    @property
    def reason(self) -> str:
        """Why this plan, in one line; put into words only when asked for."""
        return str(self._reason)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that an inference spent in each phase.

    Attributes:
        decide: Choosing the plan.
        head: Running the head on the device; the whole network when local, and what was run after a failure.
        encode: Writing the tensors that cross.
        network: On the way, both ways: the request's time less what the server reports as its own.
        queue: In the server before the tail's turn, building the tail included.
        decode: In the server, reading what crossed.
        tail: Running the tail on the server.
        total: All of it.
    """

    decide: float
    head: float
    encode: float
    network: float
    queue: float
    decode: float
    tail: float
    total: float


@dataclass(frozen=True, slots=True)
class Result:
    """The answer.

    Attributes:
        outputs: The network's outputs.
        plan: How they were computed.
        timings: Where the time went.
        late: Whether it came after the deadline.
        hedged: Whether the device began its own tail while the server's answer was out, because that was late.
        resumed: Whether the device finished for the server, which failed, refused or was late.
    """

    outputs: tuple[Array, ...]
    plan: Plan
    timings: Timings
    late: bool = False
    hedged: bool = False
    resumed: bool = False

    @property
    def output(self) -> Array:
        """The first output; the only one of most networks."""
        return self.outputs[0]

    def to_json(self) -> dict[str, Any]:
        """Plan, timings and what went wrong, ready for `json.dumps`; the outputs are left out."""
        plan = self.plan
        return {
            "plan": {
                "cut": plan.cut,
                "location": plan.location,
                "codec": plan.codec,
                "server": plan.server,
                "predicted_seconds": plan.predicted_seconds,
                "exact": plan.exact,
                "reason": plan.reason,
            },
            "timings": asdict(self.timings),
            "late": self.late,
            "hedged": self.hedged,
            "resumed": self.resumed,
        }
