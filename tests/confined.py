"""Confines itself and tries what a sandbox should refuse or allow; prints the errors as JSON.

Arguments: an empty folder, code to run before, and whether to confine itself ("1") or not ("0").
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from loadpart_common.sandbox import confine

if TYPE_CHECKING:
    from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)


def called(result: int) -> None:
    """Raises the error of a call of the C library."""
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def error_of(action: Callable[[], object]) -> int:
    """The number of the error that an action ends with; 0 without one."""
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def opening(family: int) -> Callable[[], object]:
    return lambda: socket.socket(family, socket.SOCK_DGRAM).close()


def in_thread(action: Callable[[], object]) -> None:
    errors: list[int] = []
    thread = threading.Thread(target=lambda: errors.append(error_of(action)))
    thread.start()
    thread.join()
    if errors != [0]:
        raise OSError(errors[0], "")


def in_program(*command: str | Path) -> None:
    """Runs a command, of which only refusals are expected."""
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        raise PermissionError(1, "")


def open_and_close(path: Path, flags: int) -> None:
    os.close(os.open(path, flags))


def attempts(outside: Path, scratch: Path, inherited: socket.socket) -> dict[str, Callable[[], object]]:
    """All attempts; each has files of its own."""
    for name in (
        "append",
        "cut",
        "cut-path",
        "gone",
        "old",
        "taken",
        "mode",
        "times",
        "attribute",
        "linked",
        "through",
    ):
        (outside / name).write_text("x")
    (outside / "folder").mkdir()
    (scratch / "link").symlink_to(outside / "through")
    (scratch / "below").mkdir()
    (scratch / "inner").write_text("x")
    parent = os.getppid()
    return {
        # allowed
        "read": (outside / "append").read_text,
        "write": lambda: (scratch / "new").write_text("x"),
        "rename": lambda: (scratch / "new").rename(scratch / "renamed"),
        "move": lambda: (scratch / "inner").rename(scratch / "below" / "inner"),
        "null device": lambda: Path(os.devnull).write_text("x"),
        "memory file": lambda: os.ftruncate(os.memfd_create("x"), 1),
        "thread": lambda: in_thread(lambda: None),
        "program": lambda: in_program("true"),
        "own signal": lambda: signal.raise_signal(signal.SIGCHLD),
        "socket": lambda: inherited.send(b"x"),
        # the network
        "internet socket": opening(socket.AF_INET),
        "internet socket in a thread": lambda: in_thread(opening(socket.AF_INET)),
        "internet socket 6": opening(socket.AF_INET6),
        "unix socket": opening(socket.AF_UNIX),
        "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
        "vsock socket": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close(),
        "pair of sockets": socket.socketpair,
        "io_uring": lambda: called(libc.syscall(425, 0, 0)),
        # files
        "append": lambda: (outside / "append").open("a").close(),
        "create": lambda: (outside / "new").write_text("x"),
        "create in a thread": lambda: in_thread(lambda: (outside / "new2").write_text("x")),
        "create in a program": lambda: in_program("touch", outside / "new3"),
        "through a link": lambda: (scratch / "link").write_text("y"),
        "truncate": lambda: open_and_close(outside / "cut", os.O_RDONLY | os.O_TRUNC),
        "truncate a path": lambda: os.truncate(outside / "cut-path", 0),
        "remove": (outside / "gone").unlink,
        "remove a folder": (outside / "folder").rmdir,
        "rename outside": lambda: (outside / "old").rename(outside / "renamed"),
        "take": lambda: (outside / "taken").rename(scratch / "taken"),
        "bring": lambda: (scratch / "renamed").rename(outside / "brought"),
        "link": lambda: (scratch / "hard").hardlink_to(outside / "linked"),
        "symbolic link": lambda: (outside / "symbolic").symlink_to("x"),
        "make a folder": (outside / "new-folder").mkdir,
        "make a pipe": lambda: os.mkfifo(outside / "pipe"),
        "mode": lambda: (outside / "mode").chmod(0o777),
        "times": lambda: os.utime(outside / "times"),
        "attribute": lambda: os.setxattr(outside / "attribute", "user.x", b"x"),
        # other processes
        "signal": lambda: os.kill(parent, 0),
        "signal to all": lambda: os.killpg(os.getpgid(parent), 0),
        "signal by owner": lambda: fcntl.fcntl(inherited, fcntl.F_SETOWN, parent),
        "limit": lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE),
        "trace": lambda: called(libc.ptrace(16, 0, 0, 0)),
        "memory by call": lambda: called(libc.process_vm_readv(parent, 0, 0, 0, 0, 0)),
        "memory of another": lambda: Path(f"/proc/{parent}/mem").open("rb").close(),
        "shared memory": lambda: called(libc.shmget(0, 1, 0o600)),
        "namespace": lambda: called(libc.unshare(0x10000000)),
    }


def main() -> None:
    folder, before, confined = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "1"
    outside, scratch = folder / "outside", folder / "scratch"
    for each in (outside, scratch):
        each.mkdir()
    inherited, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    actions = attempts(outside, scratch, inherited)
    exec(before, {})
    unenforced = confine(scratch) if confined else []
    print(json.dumps([unenforced, {name: error_of(action) for name, action in actions.items()}]))
    other.close()


if __name__ == "__main__":
    main()
