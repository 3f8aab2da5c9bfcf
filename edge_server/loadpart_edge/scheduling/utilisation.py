"""Shares of the machine's processors and GPUs that are in use."""

from __future__ import annotations

import psutil


class Utilisation:
    """Shares of processors and GPUs in use since the last look."""

    def __init__(self) -> None:
        psutil.cpu_percent(interval=None)  # the first reading has nothing to compare with
        self._gpus = _open_gpus()

    def cpu(self) -> float:
        """Share of the processor cores in use, 0 to 1."""
        return min(1.0, psutil.cpu_percent(interval=None) / 100)

    def gpu(self) -> float | None:
        """Share of the busiest GPU in use, 0 to 1; None where there is none."""
        if not self._gpus:
            return None
        import pynvml

        try:
            return max(float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) for gpu in self._gpus) / 100
        except pynvml.NVMLError:
            return None


def _open_gpus() -> list[object]:
    import pynvml

    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:  # no driver, no GPU
        return []
