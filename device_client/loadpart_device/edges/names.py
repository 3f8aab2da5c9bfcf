"""The addresses behind a name such as `dns:///edge.site:50051`."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadpart_common.wire.endpoint import Endpoint

_NAME = re.compile(r"dns:(///)?(?P<host>[^/:]+):(?P<port>[0-9]+)")


def is_name(endpoint: Endpoint) -> bool:
    """Whether an endpoint is a name whose addresses are servers of their own.

    A name that a certain name server is to resolve (`dns://8.8.8.8/edge.site:50051`) is left to gRPC, as one server.
    """
    return _NAME.fullmatch(endpoint.target) is not None


def resolve(endpoint: Endpoint) -> list[Endpoint]:
    """The endpoints behind a name, in the order in which the system prefers them.

    A server with addresses of both families counts once: only the family that the system prefers is looked at. The
    servers' certificates must have the name, unless the credentials name another one.

    Raises:
        OSError: The name cannot be resolved.
    """
    match = _NAME.fullmatch(endpoint.target)
    if match is None:
        raise ValueError(f"expected a name to resolve, got {endpoint}")
    found = socket.getaddrinfo(match["host"], int(match["port"]), type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    family = found[0][0]
    hosts = dict.fromkeys(str(address[0]) for kind, _, _, _, address in found if kind == family)
    credentials = replace(endpoint.credentials, server_name=endpoint.credentials.server_name or match["host"])
    return [
        replace(endpoint, target=f"{f'[{host}]' if ':' in host else host}:{match['port']}", credentials=credentials)
        for host in hosts
    ]
