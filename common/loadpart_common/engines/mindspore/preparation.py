"""What must be in place before MindSpore is imported."""

from __future__ import annotations

import concurrent.futures.process
import concurrent.futures.thread  # noqa: F401  # see below
import os

from loadpart_common.engines.mindspore import fork_exit, protobuf_loader

# MindSpore imports the pools of concurrent.futures, which cannot be imported any more once the interpreter has begun to
# end. MindSpore's own import, on a thread, may then still be under way.


def prepare_import() -> None:
    """Makes MindSpore log only errors, load with a current protobuf runtime, and let forks of this process end."""
    os.environ.setdefault("GLOG_v", "3")
    protobuf_loader.install()
    fork_exit.prepare()
