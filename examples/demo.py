"""Shows LoADPart at work: an edge server on this machine, and seven networks on a photograph.

Each network classifies the photograph locally, offloaded, split in the middle, and with the load-aware policy. The
table shows which plan was run, how long each phase took, and whether the outputs equal the local ones bit for bit. The
weights of one network are trained: it says in words what it sees.
"""

from __future__ import annotations

import importlib.resources
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from loadpart_common.engines.mindspore.zoo import NETWORKS
from loadpart_device import OffloadClient
from loadpart_device.images import load_images
from loadpart_device.presenting import top

if TYPE_CHECKING:
    from loadpart_common.graph import Graph
    from loadpart_common.tensors import Array
    from loadpart_device import Result

BIN = Path(sys.executable).parent
REPEATS = 5
PHASES = ("head", "encode", "network", "queue", "tail", "total")

console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def start_server() -> tuple[subprocess.Popen[str], str]:
    """Starts a daemon on a free port and waits for the line that says it is ready."""
    process = subprocess.Popen(
        [BIN / "loadpart-edge", "serve", "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if "ready" not in line:
        sys.exit("the server did not start; its messages are above")
    return process, line.split("listening=")[1].split()[0]


def middle_cut(graph: Graph) -> int:
    """Of the cuts in the middle third, the one where the fewest bytes cross."""
    third = graph.layer_count // 3
    return min((cut for cut in graph.cuts if third <= cut.index <= 2 * third), key=lambda cut: cut.nbytes()).index


def run(client: OffloadClient, image: Array) -> tuple[Result, dict[str, float]]:
    """Infers a few times; returns the last result and the median of each phase in milliseconds."""
    client.wait_ready()
    client.infer(image)
    results = [client.infer(image) for _ in range(REPEATS)]
    medians = {phase: statistics.median(getattr(r.timings, phase) for r in results) * 1e3 for phase in PHASES}
    return results[-1], medians


def in_words(result: Result, client: OffloadClient) -> str:
    """The class with the highest score, where the network has names for its classes."""
    best = top(result.output[0], client.labels)[0]
    return f"{best['label']} ({best['probability']:.0%})" if client.labels else ""


def main() -> None:
    """Runs the demo."""
    photograph = Path(str(importlib.resources.files("skimage.data"))) / "coffee.png"
    subprocess.run([BIN / "loadpart-edge", "export", "--missing"], check=True)
    console.print("starting an edge server on this machine ...")
    server, target = start_server()
    table = Table(
        "network", "policy", "plan", *PHASES, "same", "sees",
        title=f"{photograph.name} on {len(NETWORKS)} networks; milliseconds, medians of {REPEATS}", header_style="bold",
    )  # fmt: skip
    different = 0
    try:
        with tempfile.TemporaryDirectory() as cache:
            for name in track(NETWORKS, description="inferring", console=console, transient=True):
                with OffloadClient(target, name, cache=cache, policy="local") as local:
                    image = load_images([photograph], local.graph.inputs[0])
                    plans: dict[str, str | int] = {
                        "local": "local",
                        "offload": "offload",
                        "split": middle_cut(local.graph),
                    }
                    reference, _ = run(local, image)
                    for label, policy in (plans | {"load-aware": "load-aware"}).items():
                        with OffloadClient(target, name, cache=cache, policy=policy) as client:
                            result, medians = run(client, image)
                        same = np.array_equal(result.output, reference.output)
                        different += not same
                        table.add_row(
                            name if label == "local" else "", label,
                            f"{result.plan.location} {result.plan.cut}/{client.graph.layer_count}",
                            *(f"{medians[phase]:.1f}" for phase in PHASES),
                            "yes" if same else "NO", in_words(result, client) if label == "local" else "",
                            end_section=label == "load-aware",
                        )  # fmt: skip
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
    console.print(table)
    console.print(
        "Six networks have random weights, so their scores mean nothing; that they agree to the last bit does."
    )
    if different:
        sys.exit(f"{different} outputs differ from the local ones")


if __name__ == "__main__":
    main()
