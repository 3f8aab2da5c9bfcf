"""One call of a device, from the moment that it was let in."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from loadpart.v1 import offload_pb2
from loadpart_common.errors import MessageTooLargeError, RequestError
from loadpart_common.protobuf_fields import WireError, fields
from loadpart_common.wire.framing import parse

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from loadpart_edge.rpc.pending_reads import PendingReads
    from loadpart_edge.rpc.quota import Quota
    from loadpart_edge.scheduling.job import Owner

    Context = grpc.aio.ServicerContext[Any, Any]

_PIECE = offload_pb2.InferRequest.PIECE_FIELD_NUMBER


class Call:
    """A call.

    gRPC takes memory for a message only when it is asked for one, so that reading is what has to be bounded.

    Attributes:
        owner: Whose it is.
        deadline: Until when the answer is of use, on the clock `time.perf_counter`; infinite when any time will do.
        received: When the last message had come, on that clock; 0 before the first.
    """

    def __init__(self, context: Context, owner: Owner, memory: Quota, reads: PendingReads) -> None:
        self._context = context
        self._memory = memory
        self._reads = reads
        self._held = 0
        self.owner = owner
        left = context.time_remaining()
        self.deadline = math.inf if left is None else time.perf_counter() + left
        self.received = 0.0

    @property
    def context(self) -> Context:
        """What gRPC knows of the call."""
        return self._context

    async def read(self) -> bytes:
        """The first message; its bytes count as held until `close`.

        Raises:
            OverloadedError: Too many bytes are held already.
            DeadlineError: It did not come in time.
            RequestError: There is none.
        """
        data = await self._message()
        self._hold(len(data))
        return data

    async def read_whole(
        self, largest: int, most_bytes: Callable[[offload_pb2.InferRequest], int]
    ) -> bytes | bytearray:
        """The request, put together when it comes in pieces; its bytes count as held until `close`.

        Args:
            largest: The bytes of the largest request.
            most_bytes: Gives the most that the tensors of a request can take, from its other fields; raises when it
                cannot be served at all, so that nothing of it is read.

        Raises:
            MessageTooLargeError: It is larger.
            OverloadedError: Too many bytes are held already.
            DeadlineError: A piece did not come in time.
            RequestError: The messages are no request.
        """
        first = await self.read()
        if len(first) > largest:
            raise MessageTooLargeError(f"expected a request of at most {largest} bytes, got {len(first)}")
        if len(first) > _LARGEST_HEAD_BYTES:
            return first
        head = parse(offload_pb2.InferRequest, first)
        total = head.total_bytes
        if not total:
            return first
        if total > (most := min(most_bytes(head), largest)):
            raise MessageTooLargeError(f"total_bytes: expected at most {most}, got {total}")
        self._hold(total)
        whole, missing = bytearray(len(first) + total), total
        whole[: len(first)] = first
        while missing:
            message = await self._message()
            try:
                ((number, _, start, stop),) = fields(memoryview(message), 0, len(message), 1)
            except (WireError, ValueError) as error:
                raise RequestError("expected a message with the field 'piece' alone") from error
            if number != _PIECE or not 0 < stop - start <= missing:
                raise RequestError(f"expected pieces of {total} bytes in all in the field 'piece'")
            at = len(whole) - missing
            whole[at : at + stop - start] = memoryview(message)[start:stop]
            missing -= stop - start
        return whole

    def close(self) -> None:
        """Forgets the bytes."""
        if self._held:
            self._memory.give(self.owner, self._held)
            self._held = 0

    def _hold(self, more: int) -> None:
        self._memory.take(self.owner, more)
        self._held += more

    async def _message(self) -> bytes:
        message = await self._reads.read(self._context)
        self.received = time.perf_counter()
        return message


_LARGEST_HEAD_BYTES = 16 << 10
"""A request with pieces begins with a message that has names and numbers only."""
