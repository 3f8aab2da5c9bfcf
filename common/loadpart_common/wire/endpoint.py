"""The address of a server, and how to connect to it or listen on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from loadpart_common.errors import SettingsError
from loadpart_common.wire.limits import channel_options

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOST_PORT = 65535

ADDRESS = f"HOST:PORT with a port of 0 to {_MOST_PORT}"
"""What an address has to be, for messages."""


def is_address(text: str) -> bool:
    """Whether a text is `ADDRESS`."""
    host, colon, port = text.rpartition(":")
    return bool(host and colon and port.isdecimal() and int(port) <= _MOST_PORT)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's endpoint. All channels and ports are opened here; settings become endpoints as soon as they are read.

    Attributes:
        target: `HOST:PORT`, or another name that gRPC resolves, such as `dns:///edge:50051` or `unix:/run/edge.sock`.
    """

    target: str

    @classmethod
    def parse(cls, text: str, field: str = "server") -> Endpoint:
        """Parses an endpoint as a user types it.

        Args:
            text: `HOST:PORT` or a gRPC target.
            field: Name of the setting, for the message.

        Raises:
            SettingsError: The text is neither.
        """
        is_other_target = text.startswith(("dns:", "unix:", "ipv4:", "ipv6:", "xds:", "unix-abstract:"))
        if text.split() != [text] or not (is_address(text) or is_other_target):
            raise SettingsError(f"{field}: expected {ADDRESS}, got {text!r}")
        return cls(text)

    def connect(self, max_message_bytes: int, options: Sequence[tuple[str, int]] = ()) -> grpc.Channel:
        """Opens a channel, which connects when it is first used.

        Args:
            max_message_bytes: Largest message to send or accept.
            options: Further settings of gRPC.
        """
        return grpc.insecure_channel(self.target, options=[*channel_options(max_message_bytes), *options])

    def bind(self, server: grpc.aio.Server) -> Endpoint:
        """Makes a server listen here; returns the actual endpoint, with a free port in place of port 0.

        Raises:
            SettingsError: The port is in use, or the address is not one of this machine.
        """
        try:
            port = server.add_insecure_port(self.target)
        except RuntimeError as error:
            raise SettingsError(f"listen: cannot listen on {self.target}: is the port in use? ({error})") from error
        return Endpoint(f"{self.target.rpartition(':')[0]}:{port}")

    def __str__(self) -> str:
        return self.target
