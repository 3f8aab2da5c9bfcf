"""The methods of the service, as defined in `protos/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.protobuf import message_factory

from loadpart.v1 import offload_pb2

if TYPE_CHECKING:
    from google.protobuf.message import Message

SERVICE = "loadpart.v1.Offload"


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the service, as defined in `protos/`."""

    name: str
    request: type[Message]
    response: type[Message]
    streams: bool

    @property
    def path(self) -> str:
        """Its path in HTTP/2."""
        return f"/{SERVICE}/{self.name}"


METHODS = {
    method.name: Method(
        method.name,
        message_factory.GetMessageClass(method.input_type),
        message_factory.GetMessageClass(method.output_type),
        method.server_streaming,
    )
    for method in offload_pb2.DESCRIPTOR.services_by_name["Offload"].methods
}
"""The methods of the service by name."""


def serialise(message: Message | bytes) -> bytes:
    """A message as bytes; bytes are returned unchanged."""
    return message if isinstance(message, bytes) else message.SerializeToString()
