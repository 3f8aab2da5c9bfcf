"""One call of a device, from the moment that it was let in."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

import grpc

from loadpart.v1 import offload_pb2
from loadpart_common.errors import DeadlineError, MessageTooLargeError, RequestError
from loadpart_common.protobuf_fields import WireError, fields
from loadpart_common.wire.framing import parse
from loadpart_common.wire.limits import PIECE_BYTES

if TYPE_CHECKING:
    from loadpart_edge.rpc.quota import Quota
    from loadpart_edge.scheduling.job import Owner

    Context = grpc.aio.ServicerContext[Any, Any]

_RECEIVE_SECONDS = 30.0
"""In which a message of at most 1 MiB has to come."""

_PIECE = offload_pb2.InferRequest.PIECE_FIELD_NUMBER


class Call:
    """A call.

    gRPC takes memory for a message only when it is asked for one, so that reading is what has to be bounded.

    Attributes:
        owner: Whose it is.
        deadline: Until when the answer is of use, on the clock `time.perf_counter`; infinite when any time will do.
        received: When the last message had come, on that clock.
    """

    def __init__(self, context: Context, owner: Owner, memory: Quota) -> None:
        self._context = context
        self._memory = memory
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
        self._hold(PIECE_BYTES)
        data = await self._message()
        self._hold(len(data) - PIECE_BYTES)
        return data

    async def read_whole(self, most_bytes: int) -> bytes:
        """The request, put together when it comes in pieces; its bytes count as held until `close`.

        Args:
            most_bytes: The largest request.

        Raises:
            MessageTooLargeError: It is larger.
            OverloadedError: Too many bytes are held already.
            DeadlineError: A piece did not come in time.
            RequestError: The messages are no request.
        """
        first = await self.read()
        if len(first) > most_bytes:
            raise MessageTooLargeError(f"expected a request of at most {most_bytes} bytes, got {len(first)}")
        if len(first) > _LARGEST_HEAD or not (total := _total_bytes(first)):
            return first
        if total > most_bytes:
            raise MessageTooLargeError(f"total_bytes: expected at most {most_bytes}, got {total}")
        self._hold(total)
        whole, missing = [memoryview(first)], total
        while missing:
            message = await self._message()
            try:
                ((number, _, start, stop),) = fields(memoryview(message), 0, len(message), 1)
            except (WireError, ValueError) as error:
                raise RequestError("expected a message with the field 'piece' alone") from error
            if number != _PIECE or not 0 < stop - start <= missing:
                raise RequestError(f"expected pieces of {total} bytes in all in the field 'piece'")
            whole.append(memoryview(message)[start:stop])
            missing -= stop - start
        return b"".join(whole)

    def close(self) -> None:
        """Forgets the bytes."""
        if self._held:
            self._memory.give(self.owner, self._held)
            self._held = 0

    def _hold(self, more: int) -> None:
        if more > 0:
            self._memory.take(self.owner, more)
        elif more < 0:
            self._memory.give(self.owner, -more)
        self._held += more

    async def _message(self) -> bytes:
        try:
            async with asyncio.timeout(_RECEIVE_SECONDS):
                message = await self._context.read()
        except TimeoutError as error:
            raise DeadlineError(f"expected the request within {_RECEIVE_SECONDS:g} s") from error
        if message is grpc.aio.EOF:
            raise RequestError("expected a request, got the end of the stream")
        self.received = time.perf_counter()
        data: bytes = message
        return data


_LARGEST_HEAD = 16 << 10  # a request with pieces begins with a message that has names and numbers only


def _total_bytes(first: bytes) -> int:
    return parse(offload_pb2.InferRequest, first).total_bytes
