"""A server between a device and a daemon that forwards every call, or refuses it if the test demands that."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc

from loadpart_common.wire.limits import channel_options
from loadpart_common.wire.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from loadpart_common.wire.error_codes import Metadata

_OPTIONS = channel_options(64 << 20)


class Doorkeeper(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Forwards messages as bytes, without parsing them.

    Attributes:
        target: Address where it listens.
        refusals: Status and trailing metadata by method name; such calls are refused.
        text: What refusals say.
        calls: Names of the methods that were called, in order.
    """

    def __init__(self, target: str) -> None:
        self.refusals: Mapping[str, tuple[grpc.StatusCode, Metadata]] = {}
        self.text = "refused by the test"
        self.calls: list[str] = []
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self], options=_OPTIONS)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def __enter__(self) -> Doorkeeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._server.stop(None).wait()

    def refuse(self, *methods: str, code: grpc.StatusCode, metadata: Metadata = ()) -> None:
        """Refuses some methods from now on; all when none is named."""
        self.refusals = dict.fromkeys(methods or METHODS, (code, metadata))

    def service(self, details: Any) -> Any:
        name = details.method.rpartition("/")[2]
        self.calls.append(name)
        if METHODS[name].streams:
            return grpc.unary_stream_rpc_method_handler(lambda request, context: self._stream(name, request, context))
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self._unary(name, request, context))

    def _unary(self, name: str, request: bytes, context: Any) -> bytes:
        self._check(name, context)
        try:
            return self._channel.unary_unary(METHODS[name].path)(request, timeout=30)
        except grpc.RpcError as error:
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.code(), error.details())

    def _stream(self, name: str, request: bytes, context: Any) -> Iterator[bytes]:
        self._check(name, context)
        call = self._channel.unary_stream(METHODS[name].path)(request)
        context.add_callback(call.cancel)
        try:
            for message in call:
                self._check(name, context)
                yield message
        except grpc.RpcError:
            return

    def _check(self, name: str, context: Any) -> None:
        if name in self.refusals:
            code, metadata = self.refusals[name]
            context.set_trailing_metadata(metadata)
            context.abort(code, self.text)
