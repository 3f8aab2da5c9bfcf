"""Finds out which client a call comes from, and whether it may make it."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from loadpart_common.errors import AuthenticationError
from loadpart_edge.access.client import certificate_sha256, check

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    from loadpart_edge.access.client import Right
    from loadpart_edge.access.clients import ClientsFile

_CERTIFICATES = 4096  # hashes that are kept, since a certificate comes with every call


class Guard:
    """Knows clients by their tokens and certificates.

    Without a file of clients, TLS alone decides: whoever could connect may do everything.
    """

    def __init__(
        self, clients: ClientsFile | None, *, asks_for_certificates: bool, clock: Callable[[], float] = time.time
    ) -> None:
        """Makes a guard.

        Args:
            clients: Who may use the server; None when whoever can connect may.
            asks_for_certificates: Whether devices show certificates when they connect.
            clock: Tells the time, in seconds since 1970.
        """
        self._clients = clients
        self._asks_for_certificates = asks_for_certificates
        self._clock = clock
        self._hashes: OrderedDict[bytes, str] = OrderedDict()

    def admit(self, token: str | None, context: grpc.aio.ServicerContext[Any, Any], right: Right) -> str | None:
        """The name of the client that makes a call; None when clients are not told apart.

        A token decides where there is one, and the certificate of the connection otherwise.

        Args:
            token: The token that the call shows.
            context: What gRPC knows of the call.
            right: What the client must be allowed to do.

        Raises:
            AuthenticationError: The client is unknown, was revoked, or its credential has expired.
            PermissionDeniedError: It lacks the right.
        """
        if self._clients is None:
            return None
        clients = self._clients.current()
        if token is not None:
            client, credential = clients.by_token(token), "token"
        elif self._asks_for_certificates:
            fingerprint = self._fingerprint(context)
            client, credential = clients.by_certificate(fingerprint) if fingerprint else None, "certificate"
        else:
            raise AuthenticationError("expected a token")
        check(client, right, self._clock(), credential)
        return client.name if client else None

    def _fingerprint(self, context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
        """SHA-256 of the certificate that the device showed, in hexadecimal."""
        pem = next(iter(context.auth_context().get("x509_pem_cert", ())), None)
        if pem is None:
            return None
        known = self._hashes.get(pem)
        if known is None:
            known = self._hashes[pem] = certificate_sha256(pem.decode("ascii"))
            if len(self._hashes) > _CERTIFICATES:
                self._hashes.popitem(last=False)
        return known
