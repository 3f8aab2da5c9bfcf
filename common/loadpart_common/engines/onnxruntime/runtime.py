"""The one place that imports ONNX Runtime."""

from __future__ import annotations

import os
from typing import Any


def runtime() -> Any:
    """The package, which from 1.29 on would tell its maker about sessions and models; it is kept from that."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime
