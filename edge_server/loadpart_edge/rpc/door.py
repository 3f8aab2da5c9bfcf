"""The door of the server: every call of every service comes through here.

It finds out whose a call is and whether its owner may make it, bounds what each device holds at a time, and only then
has the request read. What goes wrong is answered in one way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import grpc

from loadpart_common.errors import AccessError, DeadlineError, InternalError, OffloadError, RequestError
from loadpart_common.text import printable
from loadpart_common.wire.credentials import TOKEN_KEY, TOKEN_SCHEME
from loadpart_common.wire.error_codes import metadata_of, status_of
from loadpart_common.wire.limits import DEVICE_KEY
from loadpart_edge.rpc.call import Call
from loadpart_edge.rpc.pending_reads import PendingReads
from loadpart_edge.rpc.quota import Quota, QuotaError
from loadpart_edge.rpc.tarpit import Tarpit
from loadpart_edge.scheduling.job import Owner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

    from loadpart_edge.access.client import Right
    from loadpart_edge.access.guard import Guard
    from loadpart_edge.metrics import Metrics
    from loadpart_edge.rpc.call import Context

_LONGEST_DEVICE = 64
_SLOWEST_WRITE_SECONDS = 30.0
"""A device that does not take a message of a stream for so long has gone, or wants the server to hold it for ever."""

_REFUSALS_SECONDS = 10.0

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """A method of a service.

    Attributes:
        function: Answers a call: a coroutine function for one response, an asynchronous generator for several. The
            responses are bytes.
        right: What a client must be allowed to do.
        quota: How many calls there may be at a time.
        is_open: Whether unknown clients may call it, too.
    """

    function: Callable[[Call], Awaitable[bytes]] | Callable[[Call], AsyncIterator[bytes]]
    right: Right
    quota: Quota
    is_open: bool = False


class Door:
    """Lets calls in."""

    def __init__(self, guard: Guard, metrics: Metrics, *, memory_bytes: int, refusals_per_second: float) -> None:
        """Makes a door.

        Args:
            guard: Knows the clients.
            metrics: Counts the answers.
            memory_bytes: Bound on the bytes of requests that are held at a time.
            refusals_per_second: Refusals of wrong calls on a connection; what it sends beyond that waits.
        """
        self._guard = guard
        self._metrics = metrics
        self._memory = Quota("bytes", in_all=memory_bytes, of_party=memory_bytes * 3 // 4, of_device=memory_bytes // 2)
        self._reads = PendingReads(memory_bytes)
        self._tarpit = Tarpit(refusals_per_second)
        self._refusals = 0
        self._refusals_told_at = float("-inf")

    @property
    def held_bytes(self) -> int:
        """Bytes of requests that are held now."""
        return self._memory.taken

    def handler(self, service: str, entries: Mapping[str, Entry], streams: frozenset[str]) -> grpc.GenericRpcHandler:
        """The handler of a service, to be added to a server.

        Args:
            service: Its full name.
            entries: Its methods by name.
            streams: Those that answer with several responses.
        """
        # For gRPC every request is a stream: of one that is not, it would take the message before anybody looks.
        return grpc.method_handlers_generic_handler(
            service,
            {
                name: grpc.stream_stream_rpc_method_handler(self._stream(name, entry))
                if name in streams
                else grpc.stream_unary_rpc_method_handler(self._unary(name, entry))
                for name, entry in entries.items()
            },
        )

    def _unary(self, name: str, entry: Entry) -> Callable[[object, Context], Awaitable[bytes]]:
        async def answer(_: object, context: Context) -> bytes:
            try:
                await self._tarpit.hold(context.peer())
                with self._let_in(entry, context) as call:
                    response: bytes = await entry.function(call)  # type: ignore[misc]
            except Exception as error:
                await self._fail(name, error, context)
                return b""  # to nobody: failing raises unless the client has left
            self._metrics.answered(name, grpc.StatusCode.OK)
            return response

        return answer

    def _stream(self, name: str, entry: Entry) -> Callable[[object, Context], Awaitable[None]]:
        async def answer(_: object, context: Context) -> None:
            try:
                await self._tarpit.hold(context.peer())
                with self._let_in(entry, context) as call:
                    async for response in entry.function(call):  # type: ignore[union-attr]
                        await _write(context, response)
                        self._identify(entry, context)  # it may have been revoked, or have expired, meanwhile
                self._metrics.answered(name, grpc.StatusCode.OK)
            except Exception as error:
                await self._fail(name, error, context)

        return answer

    @contextlib.contextmanager
    def _let_in(self, entry: Entry, context: Context) -> Iterator[Call]:
        """The call, when its owner may make it and has not too many; within the block it counts as one of them.

        Raises:
            AccessError: It may not.
            QuotaError: It has.
        """
        owner = self._identify(entry, context)
        with entry.quota.held(owner), contextlib.closing(Call(context, owner, self._memory, self._reads)) as call:
            try:
                yield call
            except asyncio.CancelledError:
                if not call.received:  # the client left without a request, or gRPC refused one that is too large
                    self._tarpit.refused(context.peer())
                raise

    def _identify(self, entry: Entry, context: Context) -> Owner:
        """Whose a call is.

        Raises:
            AccessError: It may not make it.
        """
        token = device = None
        for key, value in context.invocation_metadata() or ():
            if key == DEVICE_KEY and isinstance(value, str):
                device = value[:_LONGEST_DEVICE]
            elif key == TOKEN_KEY and isinstance(value, str):
                token = value.removeprefix(TOKEN_SCHEME)
        client = None if entry.is_open else self._guard.admit(token, context, entry.right)
        return Owner(client or _host(context.peer()), device or "")

    async def _fail(self, name: str, error: Exception, context: Context) -> None:
        """Answers with an error: a domain error as it is, anything else without its details, which the log gets."""
        if not isinstance(error, OffloadError):
            if context.done() or isinstance(error, grpc.aio.InternalError):  # the client has left, maybe while we wrote
                self._metrics.answered(name, grpc.StatusCode.CANCELLED)
                return
            log.error("%s failed", name, exc_info=error)
            error = InternalError("the request failed inside the server; its log has the details")
        if isinstance(error, AccessError):
            self._tell_refusal(error, context)
        status = status_of(error)
        self._metrics.answered(name, status)
        if isinstance(error, (AccessError, RequestError, QuotaError)):  # whoever made the call could have known
            self._tarpit.refused(context.peer())
            await self._tarpit.hold(context.peer())
            if context.done():  # it has left meanwhile
                return
        try:
            await context.abort(status, str(error), metadata_of(error))
        except grpc.aio.AbortError as aborted:
            asyncio.get_running_loop().call_soon(_let_go, aborted)
            raise

    def _tell_refusal(self, error: AccessError, context: Context) -> None:
        """Logs that somebody was refused, now and then."""
        self._refusals += 1
        now = time.monotonic()
        if now - self._refusals_told_at > _REFUSALS_SECONDS:
            log.warning("%d call(s) refused, the last of %s: %s", self._refusals, _host(context.peer()), error)
            self._refusals, self._refusals_told_at = 0, now


def _let_go(error: BaseException | None) -> None:
    """Empties the frames that an error has passed, and those of the errors that led to it.

    A call keeps the error that ended it, whose frames keep the call: it would count as one of its connection's until
    the next collection of garbage.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


async def _write(context: Context, response: bytes) -> None:
    try:
        async with asyncio.timeout(_SLOWEST_WRITE_SECONDS):
            await context.write(response)
    except TimeoutError as error:
        raise DeadlineError(f"expected a message to be taken within {_SLOWEST_WRITE_SECONDS:g} s") from error


@lru_cache(4096)
def _host(peer: str) -> str:
    """The host of a peer as gRPC names it, such as `ipv4:10.0.0.1:4711`; connections of one host are one party."""
    kind, _, address = peer.partition(":")
    return printable(address.rpartition(":")[0] if kind.startswith("ip") else kind, _LONGEST_DEVICE)
