"""Sets up a server's credentials, and gives and takes those of its clients."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from loadpart_common.errors import SettingsError
from loadpart_common.files import write_atomically
from loadpart_edge.access.client import Client, Right, certificate_sha256, check_name, token_sha256
from loadpart_edge.access.clients import Clients
from loadpart_edge.access.folder import FOLDER_MODE, PUBLIC_MODE, SECRET_MODE, make_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from loadpart_edge.access.authority import Issued
    from loadpart_edge.access.folder import Folder

_TOKEN_BYTES = 32
_DEVICE_FILES = {"ca": "ca.crt", "certificate": "client.crt", "key": "client.key", "token_file": "token"}


@dataclass(frozen=True)
class ServerCredentials:
    """What a server shows to devices.

    Attributes:
        names: Host names and IP addresses by which devices may call it.
        expires: When its certificate ends.
    """

    names: tuple[str, ...]
    expires: datetime


@dataclass(frozen=True)
class ClientCredentials:
    """What was made for a client.

    Attributes:
        client: The client, as the server knows it.
        token: Its token; None when it has none.
        files: What the device needs, by the name of its setting.
    """

    client: Client
    token: str | None
    files: dict[str, Path]


def initialise(folder: Folder, names: Sequence[str], *, is_renewal: bool = False) -> ServerCredentials:
    """Makes a CA, a server certificate and an empty clients file; a renewal makes another server certificate only.

    Args:
        folder: Where.
        names: Host names and IP addresses of the server; a renewal without any takes those of the old certificate.
        is_renewal: Whether the CA that is there signs.

    Raises:
        SettingsError: A CA is there, or for a renewal none is; a name is not one; the folder cannot be written.
    """
    from loadpart_edge.access.authority import make_authority, names_in, server_certificate

    make_private(folder.path)
    with folder.locked():
        if is_renewal:
            authority = _authority(folder)
            if not names and folder.server_certificate.exists():
                names = names_in(folder.server_certificate.read_bytes())
        elif folder.ca_certificate.exists() or folder.ca_key.exists():
            raise SettingsError(
                f"there is a CA in {folder.path}, and another one would shut out all devices: "
                "'--renew-server' makes a new server certificate only"
            )
        else:
            authority = make_authority()
        server = server_certificate(authority, names)
        if not is_renewal:
            _write(authority, folder.ca_certificate, folder.ca_key)
        _write(server, folder.server_certificate, folder.server_key, keeps_owner=True)
        if not folder.clients.exists():
            folder.write_clients(Clients())
        return ServerCredentials(names_in(server.certificate), server.expires)


def add(
    folder: Folder,
    name: str,
    *,
    output: Path | None = None,
    days: int = 365,
    rights: Iterable[Right] = (),
    has_token: bool | None = None,
    has_certificate: bool | None = None,
    is_replacement: bool = False,
) -> ClientCredentials:
    """Makes the credentials of a client and lets it in.

    Args:
        folder: The server's credentials.
        name: The client's name.
        output: Where to put the client's folder.
        days: How long the credentials are valid; a certificate ends with that of the CA at the latest.
        rights: What it may do; when empty, a client that is replaced keeps what it may do, and a new one may do all.
        has_token: Whether to make a token; when None, as the client had before, and for a new one yes.
        has_certificate: Whether to make a certificate; when None, likewise.
        is_replacement: Whether the client may be there already; what it had before is worthless then.

    Raises:
        SettingsError: The name is not one or is taken, neither token nor certificate is wanted, the CA is missing or
            damaged, or files cannot be written.
    """
    check_name(name)
    with folder.locked():
        clients = folder.read_clients()
        old = clients.by_name(name)
        if old is not None and not is_replacement:
            raise SettingsError(f"client {name!r} is there already: '--replace' gives it new credentials")
        if has_token is None:
            has_token = old is None or old.token_sha256 is not None
        if has_certificate is None:
            has_certificate = old is None or old.certificate_sha256 is not None
        if not has_token and not has_certificate:
            raise SettingsError(f"client {name!r}: expected a token, a certificate or both")
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)
        issued = None
        if has_certificate:
            from loadpart_edge.access.authority import client_certificate

            issued = client_certificate(_authority(folder), name, days)
            expires = issued.expires
        token = secrets.token_urlsafe(_TOKEN_BYTES) if has_token else None
        client = Client(
            name,
            frozenset(rights) or (old.rights if old is not None else frozenset(Right)),
            token_sha256(token) if token is not None else None,
            certificate_sha256(issued.certificate.decode()) if issued is not None else None,
            expires,
        )
        # Registered last: when its files cannot be written, a new client is not let in, and an old one not shut out.
        files = _hand_out(folder, (output or folder.devices) / name, token, issued)
        folder.write_clients(Clients((*(each for each in clients.entries if each.name != name), client)))
        return ClientCredentials(client, token, files)


def revoke(folder: Folder, name: str) -> bool:
    """Shuts a client out; gives whether it was in before.

    Raises:
        SettingsError: There is no such client; the message lists those that there are.
    """
    with folder.locked():
        clients = folder.read_clients()
        client = clients.by_name(name)
        if client is None:
            known = ", ".join(each.name for each in clients.entries) or "none"
            raise SettingsError(f"no client {name!r} in {folder.clients}: expected one of: {known}")
        if client.is_revoked:
            return False
        others = (each for each in clients.entries if each is not client)
        folder.write_clients(Clients((*others, replace(client, is_revoked=True))))
        return True


def _authority(folder: Folder) -> Issued:
    from loadpart_edge.access.authority import Issued

    if not folder.ca_certificate.exists() or not folder.ca_key.exists():
        raise SettingsError(f"no CA in {folder.path}: 'loadpart-edge credentials init' makes one")
    return Issued(folder.ca_certificate.read_bytes(), folder.ca_key.read_bytes())


def _write(issued: Issued, certificate: Path, key: Path, *, keeps_owner: bool = False) -> None:
    write_atomically(key, issued.key, SECRET_MODE, keeps_owner=keeps_owner)
    write_atomically(certificate, issued.certificate, PUBLIC_MODE, keeps_owner=keeps_owner)


def _hand_out(folder: Folder, target: Path, token: str | None, issued: Issued | None) -> dict[str, Path]:
    """Writes what a device needs into a folder of its own; gives the files by the names of settings."""
    target.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    make_private(target)
    files = {setting: target / name for setting, name in _DEVICE_FILES.items()}
    if folder.ca_certificate.exists():
        write_atomically(files["ca"], folder.ca_certificate.read_bytes(), PUBLIC_MODE)
    if issued is not None:
        _write(issued, files["certificate"], files["key"])
    if token is not None:
        write_atomically(files["token_file"], f"{token}\n".encode(), SECRET_MODE)
    made = {"ca": folder.ca_certificate.exists(), "token_file": token is not None}
    made |= dict.fromkeys(("certificate", "key"), issued is not None)
    for setting, path in files.items():
        # What was handed out before and is worthless now would be taken for valid.
        if not made[setting]:
            path.unlink(missing_ok=True)
    return {setting: path for setting, path in files.items() if made[setting]}
