"""What must be in place before MindSpore is imported."""

from __future__ import annotations

import os

from loadpart_common.engines.mindspore import protobuf_loader


def prepare_import() -> None:
    """Makes MindSpore log only errors, and makes its protobuf modules load with a current protobuf runtime."""
    os.environ.setdefault("GLOG_v", "3")
    protobuf_loader.install()
