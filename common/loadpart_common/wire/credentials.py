"""How a device proves who it is, and how a server does: certificates, keys and tokens."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from loadpart_common.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from loadpart_common.wire.error_codes import Metadata

TOKEN_KEY = "authorization"
"""Metadata of a call with the device's token, as `TOKEN_SCHEME` and the token."""

TOKEN_SCHEME = "Bearer "

_LARGEST_FILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a device needs to get in at a server.

    Attributes:
        ca: File with the certificates of the authorities that a server's certificate may come from, in PEM; those that
            the system trusts when None.
        certificate: File with the device's own certificate, in PEM, for servers that ask for one.
        key: File with the certificate's private key, in PEM.
        token: A token for servers that ask for one.
        token_file: A file with the token, read again when it has changed; wins over `token`.
        tls: Whether the connection is encrypted; so it is in any case when there is a `ca` or a `certificate`.
        server_name: Name that the server's certificate must have; the host of the address when empty.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None
    tls: bool = False
    server_name: str = ""

    def __post_init__(self) -> None:
        """Checks that what belongs together is there together.

        Raises:
            SettingsError: It is not.
        """
        if (self.certificate is None) != (self.key is None):
            raise SettingsError("certificate, key: expected both or neither")

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.tls or self.ca is not None or self.certificate is not None

    @property
    def has_token(self) -> bool:
        """Whether there is a token to be shown."""
        return self.token is not None or self.token_file is not None

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """The certificates for a channel, read from their files now; None for a channel in the clear.

        Raises:
            SettingsError: A file cannot be read.
        """
        if not self.uses_tls:
            return None
        ca, key, certificate = (
            read_pem(path, name) if path is not None else None
            for name, path in (("ca", self.ca), ("key", self.key), ("certificate", self.certificate))
        )
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def metadata(self) -> Metadata:
        """What every call shows of the token, read from its file now; empty without one.

        Raises:
            SettingsError: The file cannot be read, or holds no token.
        """
        token = self.token
        if self.token_file is not None:
            token = read_pem(self.token_file, "token_file").decode("utf-8", "replace").strip()
        if token is None:
            return ()
        if not token.isascii() or not token.isprintable() or not token or " " in token:
            raise SettingsError("token: expected letters, digits and punctuation without spaces")
        return ((TOKEN_KEY, TOKEN_SCHEME + token),)

    def state(self) -> tuple[float, ...]:
        """A value that changes when one of the files does."""
        return _times(self.ca, self.certificate, self.key, self.token_file)


NO_CREDENTIALS = Credentials()


@dataclass(frozen=True, slots=True)
class ServerTls:
    """How a server encrypts, and whom it believes.

    Attributes:
        certificate: File with the server's certificate and those between it and the authority, in PEM.
        key: File with the certificate's private key, in PEM.
        client_ca: File with the certificates of the authorities that a device's certificate must come from, in PEM; a
            device needs no certificate when None.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def server_credentials(self) -> grpc.ServerCredentials:
        """The credentials of a port, which are read again for the next handshake when a file has changed.

        Raises:
            SettingsError: A file cannot be read.
        """
        known = self._configuration()
        state = self._state()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal state
            now = self._state()
            if now == state:
                return None
            state = now
            try:
                return self._configuration()
            except SettingsError:  # half of the files is written: the next handshake looks again
                state = ()
                return None

        # That nothing has changed is told by None, which the types of gRPC leave out.
        return grpc.dynamic_ssl_server_credentials(known, fetch, self.client_ca is not None)  # type: ignore[arg-type]

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pair = (read_pem(self.key, "tls_key"), read_pem(self.certificate, "tls_certificate"))
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
        except ssl.SSLError as error:  # one of the two files is newer than the other, or none is PEM
            raise SettingsError(
                f"tls_certificate, tls_key: expected a certificate and its key in PEM ({error.reason or error})"
            ) from error
        client_ca = read_pem(self.client_ca, "tls_client_ca") if self.client_ca is not None else None
        return grpc.ssl_server_certificate_configuration([pair], client_ca)

    def _state(self) -> tuple[float, ...]:
        return _times(self.certificate, self.key, self.client_ca)


def read_pem(path: Path, field_name: str) -> bytes:
    """A small file with a certificate, a key or a token.

    Raises:
        SettingsError: It cannot be read; the message names the setting.
    """
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_FILE_BYTES)
    except OSError as error:
        raise SettingsError(f"{field_name}: cannot read {path}: {error.strerror or error}") from error


def _times(*paths: Path | None) -> tuple[float, ...]:
    times = []
    for path in paths:
        try:
            times.append(os.stat(path).st_mtime_ns if path is not None else 0)
        except OSError:
            times.append(-1)
    return tuple(times)
