"""One client: its rights, how it is known, and whether it may do what it asks for."""

from __future__ import annotations

import hashlib
import re
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from loadpart_common.errors import AuthenticationError, PermissionDeniedError, SettingsError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_EMPTY_SHA256 = hashlib.sha256().hexdigest()
_FIELDS = ("rights", "token_sha256", "certificate_sha256", "expires", "revoked")


class Right(StrEnum):
    """What a client may do: run tails, fetch models, follow the server's status."""

    INFER = "infer"
    FETCH = "fetch"
    WATCH = "watch"


@dataclass(frozen=True)
class Client:
    """Somebody who may use the server.

    Attributes:
        name: Its name, which is also the common name of its certificate.
        rights: What it may do.
        token_sha256: SHA-256 of its token, in lower-case hexadecimal digits; None when it has no token.
        certificate_sha256: SHA-256 of its certificate in DER, written likewise; None when it has no certificate.
        expires: When its credentials end; None for never.
        is_revoked: Whether it was shut out.
    """

    name: str
    rights: frozenset[Right]
    token_sha256: str | None = None
    certificate_sha256: str | None = None
    expires: datetime | None = None
    is_revoked: bool = False

    @classmethod
    def from_table(cls, name: str, table: object) -> Client:
        """Makes a client of its table in a clients file.

        Raises:
            SettingsError: Something in it is wrong; the message names client and field.
        """
        check_name(name)
        try:
            return cls._from_fields(name, table)
        except SettingsError as error:
            raise SettingsError(f"client {name!r}: {error}") from error

    @classmethod
    def _from_fields(cls, name: str, table: object) -> Client:
        if not isinstance(table, dict):
            raise SettingsError(f"expected a table, got {table!r}")
        for field, value in table.items():
            if field not in _FIELDS:
                hint = f'; a name with a dot is written ["{name}.{field}"]' if isinstance(value, dict) else ""
                raise SettingsError(f"unknown field {field!r}: expected one of {', '.join(_FIELDS)}{hint}")
        client = cls(
            name,
            _rights(table.get("rights")),
            _sha256("token_sha256", table.get("token_sha256")),
            _sha256("certificate_sha256", table.get("certificate_sha256")),
            _expires(table.get("expires")),
            _revoked(table.get("revoked", False)),
        )
        if client.token_sha256 is None and client.certificate_sha256 is None:
            raise SettingsError("expected a token_sha256, a certificate_sha256 or both")
        if client.token_sha256 == _EMPTY_SHA256:
            raise SettingsError("token_sha256: this is the hash of an empty token, which anybody can send")
        return client

    def text(self) -> str:
        """The client's table in a clients file."""
        # Without quotes, a dot would begin a table within the table.
        lines = [f'["{self.name}"]' if "." in self.name else f"[{self.name}]"]
        lines.append("rights = [" + ", ".join(f'"{right}"' for right in self.ordered_rights) + "]")
        if self.token_sha256 is not None:
            lines.append(f'token_sha256 = "{self.token_sha256}"')
        if self.certificate_sha256 is not None:
            lines.append(f'certificate_sha256 = "{self.certificate_sha256}"')
        if self.expires is not None:
            lines.append(f"expires = {self.expires.astimezone(UTC).replace(tzinfo=None).isoformat()}Z")
        if self.is_revoked:
            lines.append("revoked = true")
        return "\n".join(lines) + "\n"

    @property
    def ordered_rights(self) -> tuple[Right, ...]:
        """The rights, always in the same order."""
        return tuple(right for right in Right if right in self.rights)

    def has_expired(self, now: float) -> bool:
        """Whether the credentials have ended by a time, in seconds since 1970."""
        return self.expires is not None and self.expires.timestamp() <= now


def check_name(name: str) -> None:
    """Checks a client's name, which names files and stands in certificates.

    Raises:
        SettingsError: It is not one.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"client {name!r}: expected a name of at most 64 letters, digits, '.', '_' and '-', "
            "that begins with a letter or digit"
        )


def check(client: Client | None, right: Right, now: float, credential: str = "token") -> None:
    """Lets a client do something, or raises why it may not.

    Args:
        client: Who was found by the credential; None when nobody was.
        right: What it wants to do.
        now: Seconds since 1970.
        credential: What it showed, for the message: "token" or "certificate".

    Raises:
        AuthenticationError: The credential is not known, was revoked or has expired.
        PermissionDeniedError: The client lacks the right.
    """
    if client is None:
        raise AuthenticationError(f"the {credential} is not known")
    if client.is_revoked:
        raise AuthenticationError(f"client {client.name!r} was revoked")
    if client.expires is not None and client.has_expired(now):
        raise AuthenticationError(f"the credential of client {client.name!r} expired on {moment(client.expires)}")
    if right not in client.rights:
        has = ", ".join(client.ordered_rights)
        raise PermissionDeniedError(f"client {client.name!r} lacks the right '{right}': it has {has}")


def moment(time: datetime) -> str:
    """A time as people read it."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def token_sha256(token: str) -> str:
    """The hash by which a token is known."""
    # What comes over the wire may be any text; half a surrogate pair is a wrong token, not a failure.
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def certificate_sha256(pem: str) -> str:
    """The hash by which a certificate is known.

    Raises:
        ValueError: The text is not a certificate in PEM.
    """
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def _rights(value: object) -> frozenset[Right]:
    known = ", ".join(Right)
    if not isinstance(value, list) or not value:
        raise SettingsError(f"rights: expected a list of one or more of {known}, got {value!r}")
    wrong = [right for right in value if right not in tuple(Right)]
    if wrong:
        raise SettingsError(f"rights: expected {known}, got {wrong[0]!r}")
    return frozenset(map(Right, value))


def _sha256(field: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise SettingsError(f"{field}: expected 64 hexadecimal digits, got {value!r}")
    return value.lower()


def _expires(value: object) -> datetime | None:
    if value is None:
        return None
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise SettingsError(f"expires: expected a time with a zone, as 2030-01-31T00:00:00Z, got {value!s}")
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise SettingsError(f"expires: {value} lies outside the calendar in UTC") from error


def _revoked(value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"revoked: expected true or false, got {value!r}")
    return value
