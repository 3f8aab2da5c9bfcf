"""The one place that imports OpenVINO."""

from __future__ import annotations

import sys
from typing import Any


def runtime() -> Any:
    """The package, which would tell its maker that it was imported; it is kept from that.

    Without the package that does the telling it works the same.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # makes importing it an ImportError
    import openvino

    return openvino
