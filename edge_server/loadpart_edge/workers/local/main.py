"""The worker process: runs one message after another for the daemon.

It is started with a connected socket, and ends when the daemon closes the other end or is gone.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
import tempfile
from typing import TYPE_CHECKING

from loadpart_common.logs import log_to_stderr
from loadpart_common.sandbox import confine
from loadpart_common.scratch import ScratchFolder

if TYPE_CHECKING:
    from loadpart_edge.workers.local.tail_runner import TailRunner

SCRATCH_PREFIX = "loadpart-worker-"
"""How the names of the workers' scratch folders start."""

_PR_SET_PDEATHSIG = 1

log = logging.getLogger(__name__)


def main() -> None:
    """Serves a socket; takes descriptors of the socket and the slot, and the settings of a `TailRunner`."""
    connection_descriptor, slot_descriptor, threads, memory_limit_bytes, level, cores = sys.argv[1:]
    log_to_stderr(level, "worker[%(process)d]")
    # The daemon decides when to end; a Ctrl-C in a terminal reaches all processes of the group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _end_with_daemon()
    with ScratchFolder(SCRATCH_PREFIX) as scratch:
        tempfile.tempdir = os.environ["TMPDIR"] = str(scratch.path)
        if unenforced := confine(scratch.path):
            log.warning("the worker is not fully confined: %s", "; ".join(unenforced))
        # Only now: importing numpy starts threads, which would not be confined.
        from loadpart_edge.workers.local.slot import Slot
        from loadpart_edge.workers.local.tail_runner import TailRunner

        runner = TailRunner(
            Slot(int(slot_descriptor)),
            threads=int(threads),
            memory_limit_bytes=int(memory_limit_bytes),
            cores=[int(core) for core in cores.split(",")],
        )
        _serve(int(connection_descriptor), runner)


def _end_with_daemon() -> None:
    """Has the kernel end this process when the daemon is killed, also while it hangs and would not notice."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _serve(descriptor: int, runner: TailRunner) -> None:
    """Answers the daemon's messages until it is gone."""
    from loadpart_edge.workers.local.messages import LARGEST_BYTES, decode_order, encode_answer

    with socket.socket(fileno=descriptor) as connection:
        try:
            while data := connection.recv(LARGEST_BYTES):
                connection.send(encode_answer(runner.answer(decode_order(data))))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon is gone
        finally:
            runner.close()


if __name__ == "__main__":
    main()
