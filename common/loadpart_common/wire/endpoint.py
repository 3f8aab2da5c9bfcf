"""The address of a server, and how to connect to it or listen on it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from loadpart_common import forks
from loadpart_common.errors import SettingsError
from loadpart_common.text import printable
from loadpart_common.wire.credentials import NO_CREDENTIALS, Credentials
from loadpart_common.wire.limits import OWN_CONNECTION, channel_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadpart_common.wire.credentials import ServerTls

_MOST_PORT = 65535

ADDRESS = f"HOST:PORT with a port of 0 to {_MOST_PORT}"
"""What an address has to be, for messages."""

_OTHER_TARGETS = ("dns:", "unix:", "ipv4:", "ipv6:", "xds:", "unix-abstract:")


def is_address(text: str) -> bool:
    """Whether a text is `ADDRESS`."""
    host, colon, port = text.rpartition(":")
    return bool(host and colon and port.isdecimal() and int(port) <= _MOST_PORT)


def is_loopback(address: str) -> bool:
    """Whether only processes of this machine can reach `HOST:PORT`, or a socket in the file system."""
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    host = address.removeprefix("dns:///").removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's endpoint. All channels and ports are opened here; settings become endpoints as soon as they are read.

    Attributes:
        target: `HOST:PORT`, or another name that gRPC resolves, such as `dns:///edge:50051` or `unix:/run/edge.sock`.
        credentials: How a device gets in.
    """

    target: str
    credentials: Credentials = NO_CREDENTIALS

    @classmethod
    def parse(cls, text: str, field: str = "server", credentials: Credentials = NO_CREDENTIALS) -> Endpoint:
        """Parses an endpoint as a user types it.

        Args:
            text: `HOST:PORT` or a gRPC target.
            field: Name of the setting, for the message.
            credentials: How a device gets in.

        Raises:
            SettingsError: The text is neither.
        """
        if text.split() != [text] or not (is_address(text) or text.startswith(_OTHER_TARGETS)):
            raise SettingsError(f"{field}: expected {ADDRESS}, got {text!r}")
        return cls(text, credentials)

    def connect(self, max_message_bytes: int, options: Sequence[tuple[str, int | str]] = ()) -> grpc.Channel:
        """Opens a channel, which connects when it is first used.

        Args:
            max_message_bytes: Largest message to send or accept.
            options: Further settings of gRPC.

        Raises:
            SettingsError: A file of the credentials cannot be read, a token would cross a network in the clear, or this
                process is a fork of one that had opened a channel.
        """
        forks.begin_use()
        credentials = self.credentials
        if credentials.has_token and not credentials.uses_tls and not is_loopback(self.target):
            raise SettingsError(
                f"token: expected TLS to {printable(self.target)}, since anyone on the way could read the token; "
                "name the server's 'ca', or set 'tls' for one that the system trusts"
            )
        named = [("grpc.ssl_target_name_override", credentials.server_name)] if credentials.server_name else []
        every = [*channel_options(max_message_bytes), OWN_CONNECTION, *options, *named]
        secure = credentials.channel_credentials()
        if secure is None:
            return grpc.insecure_channel(self.target, options=every)
        return grpc.secure_channel(self.target, secure, options=every)

    def bind(self, server: grpc.aio.Server, tls: ServerTls | None = None, field: str = "listen") -> Endpoint:
        """Makes a server listen here; returns the actual endpoint, with a free port in place of port 0.

        Args:
            server: The server.
            tls: How it encrypts; None for in the clear.
            field: Name of the setting, for the message.

        Raises:
            SettingsError: The port is in use, the address is not one of this machine, or a certificate cannot be read.
        """
        try:
            if tls is None:
                port = server.add_insecure_port(self.target)
            else:
                port = server.add_secure_port(self.target, tls.server_credentials())
        except RuntimeError as error:
            raise SettingsError(f"{field}: cannot listen on {self.target}: is the port in use? ({error})") from error
        return Endpoint(f"{self.target.rpartition(':')[0]}:{port}")

    def __str__(self) -> str:
        return self.target
