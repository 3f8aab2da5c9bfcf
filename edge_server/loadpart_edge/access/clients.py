"""All clients of a server: a TOML file with a table for each, and that file kept up to date while the daemon runs."""

from __future__ import annotations

import hmac
import logging
import os
import stat
import threading
import time
import tomllib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from loadpart_common.errors import SettingsError
from loadpart_edge.access.client import Client, Right, certificate_sha256, check, token_sha256

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Client", "Clients", "ClientsFile", "Right", "certificate_sha256", "check", "token_sha256"]

MAX_FILE_BYTES = 4 << 20
CHECK_SECONDS = 0.5
_HEADER = "# Who may use this server. 'loadpart-edge credentials' writes this file anew; comments of yours are lost.\n"
_NOBODY_SHA256 = "0" * 64

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clients:
    """The clients of a server; no two have the same name, token or certificate.

    Attributes:
        entries: Each of them, sorted by name.

    Raises:
        SettingsError: Two have the same name, token or certificate.
    """

    entries: tuple[Client, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "entries", tuple(sorted(self.entries, key=lambda client: client.name)))
        for what in ("name", "token_sha256", "certificate_sha256"):
            owners: dict[str, str] = {}
            for client in self.entries:
                value = getattr(client, what)
                if value is not None and owners.setdefault(value, client.name) is not client.name:
                    raise SettingsError(f"client {client.name!r}: {what}: client {owners[value]!r} has the same")

    @classmethod
    def parse(cls, text: str, source: object) -> Clients:
        """Reads the text of a clients file.

        Raises:
            SettingsError: Something is wrong; the message names the source, the client and the field.
        """
        if len(text.encode(errors="surrogatepass")) > MAX_FILE_BYTES:
            raise SettingsError(f"{source}: expected at most {MAX_FILE_BYTES >> 20} MiB")
        try:
            return cls(tuple(Client.from_table(name, table) for name, table in tomllib.loads(text).items()))
        except (SettingsError, ValueError) as error:
            raise SettingsError(f"{source}: {error}") from error
        except RecursionError as error:
            raise SettingsError(f"{source}: nested too deeply") from error

    @classmethod
    def read(cls, path: Path) -> Clients:
        """Reads a clients file.

        Raises:
            SettingsError: It cannot be read, others may write to it, or something in it is wrong.
        """
        try:
            # Opening a pipe would wait for its writer without the flag.
            with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
                mode = os.fstat(file.fileno()).st_mode
                if not stat.S_ISREG(mode):
                    raise SettingsError(f"{path} is no file")
                if mode & 0o022:
                    raise SettingsError(
                        f"{path} has mode {stat.S_IMODE(mode):04o}: whoever may write to it may use the server; "
                        f"'chmod go-w {path}' mends that"
                    )
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror}") from error
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise SettingsError(f"{path}: {error}") from error
        return cls.parse(text, path)

    def text(self) -> str:
        """The text of a clients file."""
        return "\n".join([_HEADER, *(client.text() for client in self.entries)])

    def by_name(self, name: str) -> Client | None:
        """The client of a name."""
        return self._by_name.get(name)

    def by_token(self, token: str) -> Client | None:
        """The client whose token this is; takes as long for a wrong token as for a right one."""
        # Comparing with every entry takes a millisecond for ten thousand clients, which a flood of wrong tokens would
        # multiply, so a dictionary finds the one candidate. That tells an attacker nothing: what it compares is the
        # SHA-256 of the token, which nobody can steer towards the hash of an unknown one, and Python compares keys only
        # where their 64-bit hashes under a secret agree. The verdict is a comparison in constant time in every case.
        presented = token_sha256(token)
        client = self._by_token.get(presented)
        expected = client.token_sha256 if client is not None else None
        return client if hmac.compare_digest(presented, expected or _NOBODY_SHA256) else None

    def by_certificate(self, sha256: str) -> Client | None:
        """The client with the certificate of that hash; a hash of a certificate is no secret."""
        return self._by_certificate.get(sha256.lower())

    @cached_property
    def _by_name(self) -> dict[str, Client]:
        return {client.name: client for client in self.entries}

    @cached_property
    def _by_token(self) -> dict[str, Client]:
        return {client.token_sha256: client for client in self.entries if client.token_sha256 is not None}

    @cached_property
    def _by_certificate(self) -> dict[str, Client]:
        return {client.certificate_sha256: client for client in self.entries if client.certificate_sha256 is not None}


class ClientsFile:
    """A clients file that is read again when it changes; may be used by several threads.

    When the new file is damaged or gone, the last good one stays in force and the log says so, once.

    Attributes:
        path: The file.

    Raises:
        SettingsError: The file is damaged or missing, or others may write to it, when this is made.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._reading = threading.Lock()
        self._checked = clock()
        self._signature = _signature(path)
        self._problem = ""
        self._clients = Clients.read(path)
        if path.stat().st_mode & 0o044:
            log.warning("%s can be read by others; it holds only hashes, but 'chmod go-r' keeps names private", path)

    def current(self) -> Clients:
        """The clients as they are now, at most half a second old; takes microseconds unless the file has changed."""
        now = self._clock()
        # A clock that was set back must not put off the next look at the file.
        is_due = not 0 <= now - self._checked < CHECK_SECONDS
        # Whoever comes while another thread reads goes on with what there is.
        if is_due and self._reading.acquire(blocking=False):
            try:
                self._checked = now
                self._refresh()
            finally:
                self._reading.release()
        return self._clients

    def _refresh(self) -> None:
        """Reads the file if it has changed."""
        # Taken before the file is read: a change in between is then seen the next time.
        signature = _signature(self.path)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._clients = Clients.read(self.path)
        except SettingsError as error:
            if isinstance(error.__cause__, OSError):
                self._signature = None  # the file may be the same when it can be read again
            if str(error) != self._problem:
                log.error("%s; the clients read before stay in force", error)
            self._problem = str(error)
        else:
            self._problem = ""
            log.info("%s: %d client(s)", self.path, len(self._clients.entries))


def _signature(path: Path) -> tuple[int, ...] | None:
    """What changes whenever a file does; None when there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    # The time of the last change of mode or owner is among them, since such a change may make the file good again.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
