"""The folder where a server's credentials are kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from loadpart_common.errors import SettingsError
from loadpart_common.files import write_atomically
from loadpart_edge.access.clients import Clients

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET_MODE = 0o600
PUBLIC_MODE = 0o644
FOLDER_MODE = 0o700
_SYSTEM_FOLDER = Path("/etc/loadpart/credentials")


def default_folder() -> Path:
    """Where credentials are kept unless told otherwise: root's belong to the machine, those of others to them."""
    if os.geteuid() == 0 and _may_write(_SYSTEM_FOLDER):
        return _SYSTEM_FOLDER
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "loadpart" / "credentials"


class Folder:
    """The folder where a server's credentials are kept.

    Attributes:
        path: The folder.
        ca_certificate: What devices check the server against, and the server the devices.
        ca_key: What signs certificates; whoever has it can let anybody in.
        server_certificate: What the server shows to devices.
        server_key: The key that belongs to it.
        clients: Who may use the server.
        devices: Where the credentials of devices are put unless told otherwise.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or default_folder()).absolute()
        self.ca_certificate = self.path / "ca.crt"
        self.ca_key = self.path / "ca.key"
        self.server_certificate = self.path / "server.crt"
        self.server_key = self.path / "server.key"
        self.clients = self.path / "clients.toml"
        self.devices = self.path / "devices"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other commands from changing the folder until the block ends.

        Raises:
            SettingsError: There is no such folder, or something in it cannot be read or written.
        """
        if not self.path.is_dir():
            raise SettingsError(f"no folder {self.path}: 'loadpart-edge credentials init' makes one")
        with os_errors():
            # A file of its own: the lock would be lost with a file that is replaced.
            descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, SECRET_MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)

    def read_clients(self) -> Clients:
        """Reads who may use the server.

        Raises:
            SettingsError: Nothing was set up here, or the file is damaged.
        """
        if not self.clients.exists():
            raise SettingsError(f"no {self.clients}: 'loadpart-edge credentials init' makes one")
        return Clients.read(self.clients)

    def write_clients(self, clients: Clients) -> None:
        """Writes who may use the server.

        Raises:
            SettingsError: There are more than a server would read.
        """
        text = clients.text()
        Clients.parse(text, self.clients)
        # A group that an administrator let read the file may be the daemon's.
        mode = stat.S_IMODE(self.clients.stat().st_mode) if self.clients.exists() else SECRET_MODE
        write_atomically(self.clients, text.encode(), mode, keeps_owner=True)


def make_private(folder: Path) -> None:
    """Makes a folder that nobody else can look into; one that is there stays as it is.

    Raises:
        SettingsError: It cannot be made, or others may put files into it.
    """
    with os_errors():
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o022:
        raise SettingsError(
            f"{folder} has mode {mode:04o}: others could exchange what is in it; 'chmod go-w {folder}' mends that"
        )


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Turns what the operating system refuses into an error of one line.

    Raises:
        SettingsError: The operating system refused something in the block.
    """
    try:
        yield
    except OSError as error:
        raise SettingsError(f"{error.filename}: {error.strerror}") from error


def _may_write(path: Path) -> bool:
    """Whether a folder is writable or could be made."""
    existing = next(each for each in (path, *path.parents) if each.exists())
    return os.access(existing, os.W_OK)
