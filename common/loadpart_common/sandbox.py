"""Takes from a process that runs model files what it does not need: the network, writing files, other processes.

A model file decides what the engine does, and an engine has faults. Landlock refuses writing by paths, a seccomp filter
refuses system calls. Both hold for all later threads and children, and cannot be undone.

What remains possible: reading files, starting programs (MindSpore runs `lscpu`), using up memory, processor and the
disk, and changing priorities and cores of the user's other processes, because a filter cannot tell those from threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REFUSED = {
    "opening connections": (
        *("socket", "socketpair", "connect", "bind", "listen"),
        # Its operations, which pass by any filter, include all of the above.
        *("io_uring_setup", "io_uring_enter", "io_uring_register"),
    ),
    "changing owners, permissions, times and attributes of files": (
        *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat"),
        *("utime", "utimes", "utimensat", "futimesat"),
        *("setxattr", "lsetxattr", "fsetxattr", "setxattrat"),
        *("removexattr", "lremovexattr", "fremovexattr", "removexattrat", "file_setattr"),
    ),
    "reaching other processes": (
        *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "kcmp"),
        *("pidfd_getfd", "pidfd_send_signal", "tkill", "move_pages", "migrate_pages", "perf_event_open"),
        *("shmget", "shmat", "shmctl", "semget", "semop", "semtimedop", "semctl"),
        *("msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink"),
    ),
    "what only root may do": (
        *("mount", "umount2", "pivot_root", "chroot", "mount_setattr", "move_mount", "open_tree", "open_tree_attr"),
        *("fsopen", "fsconfig", "fsmount", "fspick", "unshare", "setns", "open_by_handle_at", "fanotify_init"),
        *("bpf", "userfaultfd", "keyctl", "add_key", "request_key"),
        *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "iopl", "ioperm"),
        *("reboot", "swapon", "swapoff", "acct", "quotactl", "syslog", "vhangup", "sethostname", "setdomainname"),
        *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
    ),
}
"""System calls that always fail, by what they do."""

_NUMBERS = {
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "clone3": 435,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "mount_setattr": 442,
    "process_mrelease": 448,
    "fchmodat2": 452,
    "setxattrat": 463,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_setattr": 469,
}
"""Recent system calls, which an older libseccomp does not know by name. Every architecture numbers them alike."""

_SIGNALLING = ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")

_FCNTL_COMMANDS = (8, 15)  # F_SETOWN, F_SETOWN_EX: have the kernel send signals to another process

_IOCTLS = (
    *(0x8901, 0x8902),  # FIOSETOWN, SIOCSPGRP: as with fcntl
    *(0x5412, 0x541C),  # TIOCSTI, TIOCLINUX: type into the terminal that the daemon was started from
    *(0x40086602, 0x401C5820),  # FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR: attributes such as "immutable"
)

_CLONE_NAMESPACES = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
_INT = 0xFFFFFFFF  # the kernel ignores the upper half of an argument that is an int

_WITHOUT_FILTER = "the network, other processes and the permissions of files can be reached"


def confine(scratch: Path) -> list[str]:
    """Confines this process for good: no connections, no writing outside of a folder, no reach to other processes.

    Descriptors that are open stay usable. Call it while the process has a single thread: threads that run already
    can still write files.

    Args:
        scratch: The folder, with what is below, where files may be written; the folder itself cannot be removed.

    Returns:
        What could not be enforced, in words; nothing if all is.
    """
    filtering = _import_pyseccomp()  # it runs programs and may write a file, which it could not do afterwards
    return [*_restrict_files(scratch), *_filter_calls(filtering)]


def _restrict_files(scratch: Path) -> Iterator[str]:
    """Refuses writing outside of a folder."""
    try:
        import landlock
    except ImportError as error:
        yield f"files can be written anywhere: {error}"
        return
    reading = landlock.FSAccess.EXECUTE | landlock.FSAccess.READ_FILE | landlock.FSAccess.READ_DIR
    try:
        ctypes.set_errno(0)  # the package takes an error that an earlier call has left there for its own
        version = landlock.landlock_abi_version()
        rules = landlock.Ruleset(landlock.FSAccess.all() & ~reading)
        rules.allow(scratch)
        rules.allow(os.devnull, rules=landlock.FSAccess.all_file() & ~reading)  # where programs' outputs go
        rules.apply()
    except (OSError, landlock.LandlockError) as error:
        yield f"files can be written anywhere: Landlock failed: {str(error).splitlines()[0]}"
        return
    if version < 3:
        yield f"files can be truncated anywhere: the kernel's Landlock has version {version}, which lacks it"
    if version < 5:
        yield f"devices can be controlled by ioctl: the kernel's Landlock has version {version}, which lacks it"
    threads = _thread_count()
    if threads > 1:
        yield f"{threads - 1} threads that ran before can write files anywhere"


def _import_pyseccomp() -> Any:
    """The package, or why there is none."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError, AttributeError) as error:  # libseccomp is missing, or too old
        return error
    return pyseccomp


def _filter_calls(seccomp: Any) -> Iterator[str]:
    """Refuses system calls."""
    if isinstance(seccomp, Exception):
        yield f"{_WITHOUT_FILTER}: {seccomp}"
        return
    try:
        calls = seccomp.SyscallFilter(seccomp.ALLOW)
        calls.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)  # another architecture's numbers differ
        calls.set_attr(seccomp.Attr.CTL_TSYNC, 1)
        with contextlib.suppress(OSError):
            # Before Linux 5.16 a filter slows all computing down otherwise. An older libseccomp cannot prevent it.
            calls.set_attr(seccomp.Attr.CTL_SSB, 1)
        for name in _refuse(seccomp, calls):
            yield f"the system call {name} remains possible: libseccomp does not know it"
        calls.load()
    except OSError as error:
        yield f"{_WITHOUT_FILTER}: seccomp failed: {error}"


def _refuse(seccomp: Any, calls: Any) -> Iterator[str]:
    """Adds the rules to a filter; gives the names of calls for which it cannot."""
    failing = seccomp.ERRNO(errno.EPERM)
    pid = os.getpid()
    rules = [
        *((failing, name, ()) for names in _REFUSED.values() for name in names),
        *((failing, name, (seccomp.Arg(0, seccomp.NE, pid),)) for name in _SIGNALLING),
        (failing, "prlimit64", (seccomp.Arg(0, seccomp.NE, 0),)),
        *((failing, "fcntl", (seccomp.Arg(1, seccomp.MASKED_EQ, _INT, command),)) for command in _FCNTL_COMMANDS),
        *((failing, "ioctl", (seccomp.Arg(1, seccomp.MASKED_EQ, _INT, request),)) for request in _IOCTLS),
        *((failing, "clone", (seccomp.Arg(0, seccomp.MASKED_EQ, flag, flag),)) for flag in _CLONE_NAMESPACES),
        # A filter cannot see its flags. The C library uses clone when there is no clone3.
        (seccomp.ERRNO(errno.ENOSYS), "clone3", ()),
    ]
    for action, name, conditions in rules:
        try:
            calls.add_rule(action, _NUMBERS.get(name, name), *conditions)
        except OSError:
            yield name


def _thread_count() -> int:
    """Threads of this process; 1 where that cannot be seen."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/task"))
    return 1
