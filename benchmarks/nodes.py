"""A Ray cluster of several nodes on this machine, each at a loopback address of its own, whose nodes can be lost."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from benchmarks.daemon import BIN
from loadpart_edge.workers.cluster import environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_START_SECONDS = 60
_END_SECONDS = 10


class Node:
    """A node: its processes, and a folder for the model files that it keeps.

    Attributes:
        address: Its address.
    """

    def __init__(self, process: subprocess.Popen[bytes], address: str, log: Path) -> None:
        self.address = address
        self._process = process
        self._log = log

    @property
    def processes(self) -> list[psutil.Process]:
        """All processes of the node, those of workers among them."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self._process.pid)
            return [top, *top.children(recursive=True)]
        return []

    @property
    def id(self) -> str:
        """Ray's name of the node."""
        (raylet,) = self.of("raylet/raylet")
        return next(argument.split("=")[1] for argument in raylet.cmdline() if argument.startswith("--node_id="))

    def of(self, name: str) -> list[psutil.Process]:
        """Its processes that have a word in their command lines."""
        found = []
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(name in argument for argument in process.cmdline()):
                    found.append(process)
        return found

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all its processes at a time, as if the machine were lost (SIGKILL) or stood (SIGSTOP)."""
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def end(self) -> None:
        """Ends all its processes, and waits for that."""
        processes = self.processes
        self.signal(signal.SIGKILL)
        self._process.wait(_END_SECONDS)
        psutil.wait_procs(processes, _END_SECONDS)

    def wait(self) -> None:
        """Waits until it has joined the cluster.

        Raises:
            RuntimeError: It does not; the message has its log.
        """
        end = time.monotonic() + _START_SECONDS
        while "Ray runtime started" not in (told := self._log.read_text()):
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"node {self.address} did not start: {told}")
            time.sleep(0.05)


class Nodes:
    """The cluster: a head, on which no worker is, and nodes that are added.

    Attributes:
        address: Address of its control service, HOST:PORT.
        token: What lets others into the cluster.
        head: The node with the control service, where the daemon connects.
        live: The other nodes, but for those that were lost.
    """

    head: Node

    def __init__(self, folder: Path, *, keeps_state: bool) -> None:
        """Makes a cluster without a node.

        Args:
            folder: An empty folder with a short path, where all nodes keep what they write.
            keeps_state: Whether the control service keeps its state when it is started again.
        """
        self._folder = folder
        self._storage = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder)} if keeps_state else {}
        self.token = secrets.token_hex(32)
        self._control: subprocess.Popen[bytes] | None = None  # once it was started again
        self.live: list[Node] = []
        self._nodes: list[Node] = []
        self._taken = 1  # 127.0.0.1 is no address of a node: Ray takes it for "find out"
        with socket.socket() as probe:
            probe.bind(("127.0.0.2", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.2:{port}"

    def start(self) -> None:
        """Starts the head."""
        port = self.address.rsplit(":")[1]
        self.head = self._start("--head", "--port", port, "--num-cpus", "0", "--include-dashboard", "false")
        self.head.wait()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which a process may join."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def add(self, count: int = 1, *, workers: int = 1) -> list[Node]:
        """Adds nodes with room for workers, each of which takes a processor or a `loadpart`, and waits for them."""
        room = ("--num-cpus", str(workers), "--resources", f'{{"loadpart": {workers}}}')
        added = [self._start("--address", self.address, *room) for _ in range(count)]
        for node in added:
            node.wait()
        self.live += added
        return added

    def drain(self, node: Node) -> None:
        """Tells the cluster that a node is taken away soon."""
        command = ["ray", "drain-node", "--address", self.address, "--node-id", node.id]
        command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "it is taken away"]
        command += ["--deadline-remaining-seconds", "60"]
        told = subprocess.run(
            [BIN / command[0], *command[1:]], env=os.environ | self.environment, capture_output=True, check=False
        )
        if told.returncode:
            raise RuntimeError(f"node {node.address} is not drained: {told.stderr.decode()}")

    def lose(self, node: Node, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to all processes of a node, which does not count as live from now on."""
        self.live.remove(node)
        node.signal(number)

    def kill_control(self) -> Callable[[], None]:
        """Kills the control service; gives what starts it again, as a supervisor would."""
        self.head.processes[0].send_signal(signal.SIGSTOP)  # it would end the whole node
        (service,) = self.head.of("gcs_server")
        command, its_environment = service.cmdline(), service.environ()
        service.kill()

        def start() -> None:
            self._control = subprocess.Popen(command, env=its_environment, stderr=subprocess.DEVNULL)

        return start

    def close(self) -> None:
        """Ends all nodes, the head last."""
        for node in reversed(self._nodes):
            node.end()
        if self._control is not None:
            self._control.kill()
            self._control.wait(_END_SECONDS)

    def _start(self, *arguments: str) -> Node:
        self._taken += 1
        address = f"127.0.0.{self._taken}"
        own = self._folder / address
        own.mkdir()
        command = ["ray", "start", "--block", "--node-ip-address", address, *arguments]
        command += ["--object-store-memory", str(100 << 20), "--disable-usage-stats", "--temp-dir", str(own)]
        with (own / "log").open("wb") as log:
            process = subprocess.Popen(
                [BIN / command[0], *command[1:]],
                env=environment.SETTINGS | os.environ | self.environment | self._storage | {"XDG_CACHE_HOME": str(own)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        node = Node(process, address, own / "log")
        self._nodes.append(node)
        return node


@contextlib.contextmanager
def nodes(*, keeps_state: bool = False) -> Iterator[Nodes]:
    """A cluster within the block, of which nothing is left after it; see `Nodes`."""
    # Its path is short, since names of sockets have 107 bytes at most.
    with tempfile.TemporaryDirectory(prefix="nodes-") as folder:
        cluster = Nodes(Path(folder), keeps_state=keeps_state)
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.close()
