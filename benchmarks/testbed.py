"""A test bed for benchmarks: shaped links between network namespaces, and slow processes; needs root."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NETWORK, _FIRST_SUBNET = "10.213", 77
SERVER_ADDRESS = f"{_NETWORK}.{_FIRST_SUBNET}.1"
"""Of the server at the first link, or at the only one."""

_BURST, _LATENCY = "32kb", "50ms"
_CLONE_NEWNET = 0x40000000
_PERIOD_MICROSECONDS, _LEAST_QUOTA_MICROSECONDS = 5000, 1000  # the kernel takes no smaller quota


class Link:
    """A link between a device's namespace and a server's, unshaped until `shape` is called.

    Attributes:
        device: Name of the device's namespace, which several links share.
        server: Name of the server's namespace.
        address: The server's address.
    """

    def __init__(self, number: int = 0) -> None:
        suffix, subnet = os.getpid() % 100000, f"{_NETWORK}.{_FIRST_SUBNET + number}"
        self.device, self.server = f"lp-device-{suffix}", f"lp-server-{suffix}-{number}"
        self.address, self._device_address = f"{subnet}.1", f"{subnet}.2"
        self._ends = {self.device: f"lpd{suffix}-{number}", self.server: f"lps{suffix}-{number}"}

    def shape(self, megabits: float, *, down_megabits: float | None = None) -> None:
        """Sets the rate of both directions by token buckets."""
        for namespace, rate in ((self.device, megabits), (self.server, down_megabits or megabits)):
            shaper = ["tbf", "rate", f"{rate}mbit", "burst", _BURST, "latency", _LATENCY]
            _run(
                "ip",
                "netns",
                "exec",
                namespace,
                "tc",
                "qdisc",
                "replace",
                "dev",
                self._ends[namespace],
                "root",
                *shaper,
            )

    def cut(self) -> None:
        """Lets nothing through, either way, until it is shaped again."""
        for namespace, end in self._ends.items():
            _run("ip", "netns", "exec", namespace, "tc", "qdisc", "replace", "dev", end, "root", "blackhole")

    def sent_bytes(self) -> int:
        """Bytes that the device has sent so far, headers included; call it from the device's namespace."""
        fields = Path("/proc/net/dev").read_text(encoding="utf-8").split(f"{self._ends[self.device]}:")[1].split()
        return int(fields[8])

    def command(self, *command: str) -> list[str]:
        """A command that runs in the server's namespace."""
        return ["ip", "netns", "exec", self.server, *command]

    def enter_device(self) -> None:
        """Moves this process into the device's namespace, with all threads that it starts from now on."""
        with Path(f"/run/netns/{self.device}").open(encoding="utf-8") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns failed")

    def _make(self) -> None:
        for namespace in self._ends:
            if not Path(f"/run/netns/{namespace}").exists():
                _run("ip", "netns", "add", namespace)
                _run("ip", "-n", namespace, "link", "set", "lo", "up")
        (device, device_end), (server, server_end) = self._ends.items()
        _run("ip", "-n", device, "link", "add", device_end, "type", "veth", "peer", "name", server_end, "netns", server)
        for namespace, address in ((device, self._device_address), (server, self.address)):
            _run("ip", "-n", namespace, "address", "add", f"{address}/30", "dev", self._ends[namespace])
            _run("ip", "-n", namespace, "link", "set", self._ends[namespace], "up")

    def _remove(self) -> None:
        for namespace in self._ends:  # deletes the veth pair, too
            subprocess.run(["ip", "netns", "delete", namespace], check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def link() -> Iterator[Link]:
    """Makes a link, and removes it at the end of the block, also after an interruption."""
    with links(1) as (made,):
        yield made


@contextlib.contextmanager
def links(count: int) -> Iterator[list[Link]]:
    """Makes links from one device to several servers, and removes them at the end of the block."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        sys.exit(
            "this benchmark makes network namespaces and shapes traffic: it needs root, and 'ip' and 'tc' (iproute2)"
        )
    made = [Link(number) for number in range(count)]
    try:
        for each in made:
            each._make()
        yield made
    finally:
        for each in made:
            each._remove()


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


class SlowDevice:
    """A group of processes that share a part of one core, by a quota of the kernel's CPU controller, version 1 or 2.

    The quota holds for periods of 5 ms or a little more: the device computes for a part of each, then pauses.
    """

    def __init__(self, share: float, pids: Iterable[int] = ()) -> None:
        """Moves processes, with all their threads, into a new group.

        Args:
            share: Of the core's time.
            pids: The processes; this one if there are none.
        """
        self._pids = tuple(pids) or (os.getpid(),)
        root, name = Path("/sys/fs/cgroup"), f"loadpart-{self._pids[0]}"
        self._is_first_version = (root / "cpu" / "cgroup.procs").exists()
        controllers = ("cpu", "cpu,cpuacct") if self._is_first_version else ("", "")
        if self._is_first_version:
            root /= "cpu"
        groups = (line.split(":") for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines())
        home = next(path for _, controller, path in groups if controller in controllers)
        self._home, self._folder = root / home.lstrip("/"), root / name
        self._folder.mkdir()
        self.set_share(share)
        for pid in self._pids:
            (self._folder / "cgroup.procs").write_text(str(pid), encoding="utf-8")

    def set_share(self, share: float) -> None:
        """Sets the share of the core's time from now on."""
        period = max(_PERIOD_MICROSECONDS, round(_LEAST_QUOTA_MICROSECONDS / share))
        quota = round(share * period)
        settings = {"cpu.max": f"{quota} {period}"}
        if self._is_first_version:
            settings = {"cpu.cfs_period_us": str(period), "cpu.cfs_quota_us": str(quota)}
        for file, text in settings.items():
            (self._folder / file).write_text(text, encoding="utf-8")

    def release(self, pid: int) -> None:
        """Moves a process out of the group; child processes start inside it."""
        (self._home / "cgroup.procs").write_text(str(pid), encoding="utf-8")

    def close(self) -> None:
        """Moves the processes out of the group, and removes the group."""
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                self.release(pid)
        self._folder.rmdir()


@contextlib.contextmanager
def slow_device(share: float) -> Iterator[SlowDevice | None]:
    """Gives this process a share of one core within the block. A share of 1 changes nothing; less needs root."""
    if share >= 1:
        yield None
        return
    try:
        slow = SlowDevice(share)
    except OSError as error:
        sys.exit(
            f"this benchmark slows the device down by a CPU quota: it needs root and a cgroup file system ({error})"
        )
    try:
        yield slow
    finally:
        slow.close()
