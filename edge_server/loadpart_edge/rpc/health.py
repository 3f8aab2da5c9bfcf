"""gRPC's health service (`grpc.health.v1.Health`), behind the door.

The messages are those of the package `grpcio-health-checking`. Its servicer is not used: while one watcher does not
read, nobody's status can be set there, and it would not let the door look at a call before its request is read.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from grpc_health.v1 import health_pb2

from loadpart_common.errors import ModelNotFoundError
from loadpart_common.wire.framing import parse
from loadpart_edge.access.client import Right
from loadpart_edge.rpc.door import Entry
from loadpart_edge.rpc.quota import Quota

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    import grpc

    from loadpart_edge.rpc.call import Call
    from loadpart_edge.rpc.door import Door

SERVICE = "grpc.health.v1.Health"

_Status = health_pb2.HealthCheckResponse


class HealthService:
    """Tells which services and models are served."""

    def __init__(self, names: Iterable[str]) -> None:
        """Makes one in which nothing is served yet.

        Args:
            names: Names of services and models; the empty name stands for the server as a whole.
        """
        self._is_serving = dict.fromkeys(names, False)
        self._changed = asyncio.Event()

    def handler(self, door: Door, *, is_open: bool) -> grpc.GenericRpcHandler:
        """The handler to add to a server.

        Args:
            door: Lets calls in.
            is_open: Whether unknown clients may ask, too.
        """
        checks = Quota("health checks", in_all=256, of_party=128, of_device=64)
        watches = Quota("health watches", in_all=256, of_party=128, of_device=8)
        entries = {
            "Check": Entry(self._check, Right.WATCH, checks, is_open),
            "Watch": Entry(self._watch, Right.WATCH, watches, is_open),
        }
        return door.handler(SERVICE, entries, frozenset({"Watch"}))

    def set(self, name: str, is_serving: bool) -> None:
        """Sets whether something is served; the empty name stands for the server as a whole."""
        if self._is_serving[name] != is_serving:
            self._is_serving[name] = is_serving
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    def set_all(self, is_serving: bool) -> None:
        """Sets whether everything is served."""
        for name in self._is_serving:
            self.set(name, is_serving)

    async def _check(self, call: Call) -> bytes:
        name = parse(health_pb2.HealthCheckRequest, await call.read()).service
        if name not in self._is_serving:
            raise ModelNotFoundError(f"no service or model {name!r}")
        return self._response(name)

    async def _watch(self, call: Call) -> AsyncIterator[bytes]:
        name = parse(health_pb2.HealthCheckRequest, await call.read()).service
        call.close()
        last = None
        while True:
            changed, response = self._changed, self._response(name)
            if response != last:
                yield response
                last = response
            await changed.wait()

    def _response(self, name: str) -> bytes:
        is_serving = self._is_serving.get(name)
        if is_serving is None:
            status = _Status.SERVICE_UNKNOWN
        else:
            status = _Status.SERVING if is_serving else _Status.NOT_SERVING
        return bytes(_Status(status=status).SerializeToString())
