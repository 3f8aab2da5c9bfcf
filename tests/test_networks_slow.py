"""The seven networks of the zoo at full size: exported, served, split."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
from benchmarks.daemon import daemon, export_missing
from benchmarks.photographs import labelled

from loadpart_common.engines.mindspore.zoo import NETWORKS
from loadpart_common.store.model_store import ModelStore
from loadpart_device import OffloadClient
from loadpart_device.images import load_images
from loadpart_edge.settings import load_settings
from tests.support import inputs_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.daemon import Daemon

pytestmark = pytest.mark.slow

FLOPS = {
    # multiply-adds of the convolutions and dense layers, in billions, as counted in the literature
    "alexnet": 0.71,
    "efficientnet-lite0": 0.407,
    "resnet18": 1.81,
    "resnet50": 4.09,
    "squeezenet": 0.82,
    "vgg16": 15.5,
    "xception": 8.4,
}


@pytest.fixture(scope="module")
def served() -> Iterator[Daemon]:
    export_missing()
    with daemon("--threads", "1", stderr=subprocess.DEVNULL) as running:
        yield running


@pytest.mark.parametrize("name", NETWORKS)
def test_shapes_and_operations_are_those_of_the_literature(served: Daemon, name: str) -> None:  # noqa: ARG001  # exported
    graph = ModelStore(load_settings({}).store).open(name).graph
    size = NETWORKS[name].image_size
    assert [str(spec) for spec in graph.inputs] == [f"uint8[N, {size}, {size}, 3]"]
    assert [str(spec) for spec in graph.output_specs] == ["float32[N, 1000]"]
    assert graph.takes_batches
    counted = sum(layer.flops for layer in graph.layers if layer.kind in {"Conv2D", "MatMul"}) / 2e9
    assert counted == pytest.approx(FLOPS[name], rel=0.06)


@pytest.mark.parametrize("name", NETWORKS)
def test_splits_are_exact(served: Daemon, cache: Path, name: str) -> None:
    with OffloadClient(served.target, name, threads=1, hedge=False, cache=cache, policy="local") as local:
        inputs = inputs_for(local.graph)
        expected = local.infer(*inputs).output
        assert np.isfinite(expected).all()
        for cut in (0, local.graph.layer_count // 3, 2 * local.graph.layer_count // 3):
            with OffloadClient(served.target, name, threads=1, hedge=False, cache=cache, policy=cut) as client:
                result = client.infer(*inputs)
            assert result.plan.cut == cut
            np.testing.assert_array_equal(result.output, expected)


def test_the_trained_network_knows_what_photographs_show(served: Daemon, cache: Path) -> None:
    photographs = labelled()
    with OffloadClient(served.target, "efficientnet-lite0", threads=1, cache=cache, policy="offload") as client:
        assert client.labels[967] == "espresso"
        seen = [client.infer(load_images([path], client.graph.inputs[0])).output[0].argmax() for path in photographs]
    right = sum(int(number) == wanted for number, wanted in zip(seen, photographs.values(), strict=True))
    assert right >= 15, f"{right} of {len(photographs)} are right, of ImageNet as a whole three of four"
