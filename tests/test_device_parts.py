"""Parts of the SDK without a server: the local runtime, the model cache, endpoints, offers, the budget of probes."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from loadpart.v1 import offload_pb2
from loadpart_common.engines.base import EngineSetup
from loadpart_common.errors import ModelError, ModelNotFoundError, SettingsError, UnavailableError
from loadpart_common.graph import Value
from loadpart_common.planning.plan import PlanKey
from loadpart_common.store.model_store import ModelStore, StoredModel
from loadpart_common.wire.endpoint import Endpoint
from loadpart_device.edges.link_estimator import LinkEstimator
from loadpart_device.edges.offer import Offer
from loadpart_device.edges.probe_budget import SHARE, ProbeBudget
from loadpart_device.edges.prober import Prober
from loadpart_device.local import LocalRuntime
from loadpart_device.model_cache import ModelCache
from tests.support import Clock, inputs_for
from tests.toy import ToyEngine
from tests.toy_networks import write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def stored(tmp_path: Path) -> StoredModel:
    write("tiny", tmp_path)
    return ModelStore(tmp_path).open("tiny")


# The local runtime.


@pytest.fixture
def runtime(stored: StoredModel) -> Iterator[LocalRuntime]:
    changes: list[int] = []
    local = LocalRuntime(
        stored, EngineSetup(ToyEngine, 1), memory_limit_bytes=1 << 20, on_change=lambda: changes.append(1)
    )
    yield local
    local.close()


def inputs_of(local: LocalRuntime) -> dict[Value, Any]:
    return {Value(-1, index): array for index, array in enumerate(inputs_for(local.graph))}


def test_heads_are_built_in_the_background_and_timed(runtime: LocalRuntime) -> None:
    cut, before = 3, runtime.head_seconds[3]
    assert runtime.is_ready(0), "cut 0 has no head to build"
    assert not runtime.is_ready(cut)
    runtime.build([cut, runtime.graph.layer_count])
    runtime.wait_built()
    assert runtime.is_ready(cut)
    assert runtime.is_ready(runtime.graph.layer_count)
    assert runtime.is_quiet
    assert runtime.head_seconds[3] != before, "the measured time replaces the predicted one"
    assert runtime.modelled_head_seconds[3] == before


def test_a_head_and_its_finish_give_what_the_whole_gives(runtime: LocalRuntime) -> None:
    values = inputs_of(runtime)
    whole, _ = runtime.head(runtime.graph.layer_count, values, 1)
    for cut in (1, 5, 9):
        outputs, seconds = runtime.head(cut, values, 1)
        assert seconds > 0
        for _ in range(2):  # first with the whole network, then with the tail
            finished = runtime.finish(cut, {**values, **outputs}, 1)
            for value in runtime.graph.outputs:
                np.testing.assert_array_equal(finished[value], whole[value])
            runtime.build([cut])
            runtime.wait_built()


def test_a_slow_device_shows_in_its_slow_down(runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.build([5])
    runtime.wait_built()
    assert runtime.slow_down == 1
    monkeypatch.setattr(runtime, "_run", lambda *_: ({}, 100 * runtime.head_seconds[5]))
    for _ in range(8):
        runtime.head(5, inputs_of(runtime), 1)
    assert runtime.slow_down > 20


def test_a_file_that_is_gone_is_an_error_when_it_is_waited_for(stored: StoredModel) -> None:
    local = LocalRuntime(stored, EngineSetup(ToyEngine, 1), memory_limit_bytes=1 << 20)
    stored.path.unlink()
    local.build([local.graph.layer_count])
    with pytest.raises(ModelError, match="the model file has been removed"):
        local.wait_built()
    local.close()


# The model cache.


class Pieces:
    """A connection that sends a model in pieces."""

    endpoint = Endpoint("edge:1")

    def __init__(self, *pieces: offload_pb2.GetModelResponse) -> None:
        self._pieces = pieces

    def get_model(self, _: str) -> Pieces:
        return self

    def pieces(self, _: float) -> Iterator[offload_pb2.GetModelResponse]:
        return iter(self._pieces)


def pieces_of(stored: StoredModel, data: bytes) -> Pieces:
    chunks = [offload_pb2.GetModelResponse(chunk=data[start : start + 100]) for start in range(0, len(data), 100)]
    return Pieces(offload_pb2.GetModelResponse(manifest=stored.manifest.to_bytes()), *chunks)


def info_of(stored: StoredModel) -> offload_pb2.ModelInfo:
    return offload_pb2.ModelInfo(digest=stored.manifest.digest, labels_digest=stored.manifest.labels_digest)


def test_a_fetched_model_is_found_by_its_digest(stored: StoredModel, tmp_path: Path) -> None:
    models, seen = ModelCache(tmp_path / "cache"), []
    assert models.find("tiny") is None
    data = stored.path.read_bytes()
    connection, info = pieces_of(stored, data), info_of(stored)
    fetched = models.fetch(connection, "tiny", info, lambda *at: seen.append(at))  # type: ignore[arg-type]
    assert fetched.path.suffix == ".toy"
    assert fetched.path.read_bytes() == data
    assert seen[-1] == (len(data), len(data))
    assert models.find("tiny", stored.manifest.digest) == fetched
    assert models.find("tiny", hashlib.sha256(b"other").hexdigest()) is None
    assert models.find_or_raise("tiny", UnavailableError("gone")) == fetched
    fetched.path.write_bytes(data[:50])
    assert models.find("tiny") is None, "the cached file is damaged"


def test_what_does_not_match_its_digest_is_refused(stored: StoredModel, tmp_path: Path) -> None:
    models, data, info = ModelCache(tmp_path / "cache"), stored.path.read_bytes(), info_of(stored)
    with pytest.raises(ModelError, match=r"model 'tiny' from edge:1: expected digest .* got"):
        models.fetch(pieces_of(stored, data[:-1]), "tiny", info, lambda *_: None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=rf"expected {len(data)} bytes, got more"):
        models.fetch(pieces_of(stored, data + b"x" * 200), "tiny", info, lambda *_: None)  # type: ignore[arg-type]
    other = offload_pb2.ModelInfo(digest="other")
    with pytest.raises(ModelError, match="expected the digest 'other'"):
        models.fetch(pieces_of(stored, data), "tiny", other, lambda *_: None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="expected the manifest of model 'tiny' first"):
        models.fetch(Pieces(), "tiny", info, lambda *_: None)  # type: ignore[arg-type]
    assert models.find("tiny") is None
    with pytest.raises(ModelNotFoundError, match="not cached, and the server cannot be asked: gone"):
        models.find_or_raise("tiny", UnavailableError("gone"))


# Endpoints.


@pytest.mark.parametrize("text", ["edge:50051", "127.0.0.1:0", "[::1]:50051", "dns:///edge.site:50051", "unix:/run/e"])
def test_an_endpoint_is_an_address_or_a_target(text: str) -> None:
    assert str(Endpoint.parse(text)) == text


@pytest.mark.parametrize("text", ["", " ", "edge", "edge:", ":50051", "edge:port", "edge:70000", "a b:1"])
def test_what_is_no_endpoint_is_refused_by_the_settings_name(text: str) -> None:
    with pytest.raises(SettingsError, match="server: expected HOST:PORT with a port of 0 to 65535, got"):
        Endpoint.parse(text)


# Offers.


def test_an_offer_is_of_the_devices_own_file() -> None:
    info = offload_pb2.ModelInfo(
        digest="mine", tail_seconds=[3, 2, 0], modelled_tail_seconds=[4, 3, 0],
        ready_plans=[offload_pb2.Plan(cut=1, codec="raw")],
    )  # fmt: skip
    offer = Offer.of(info, "mine", 2)
    assert offer is not None
    assert offer.decode_seconds == {PlanKey(1, "raw"): 0.0}
    assert Offer.of(None, "mine", 2) is None
    assert Offer.of(info, "another", 2) is None
    assert Offer.of(info, "mine", 3) is None, "the number of layers differs"


# The budget of probes.


def test_all_probes_are_paid_from_one_budget() -> None:
    clock = Clock()
    budget = ProbeBudget(clock)
    assert budget.pay(0.08) == pytest.approx(0.08 / SHARE)
    assert budget.pay(0.08) == pytest.approx(0.16 / SHARE), "probes of all servers share the budget"
    clock.now += 0.16 / SHARE
    assert budget.pay(0.0) == pytest.approx(0)
    clock.now += 1000
    assert budget.pay(0.08) == pytest.approx(0.08 / SHARE - 60), "at most a minute of unused budget is saved"


def test_a_thin_link_is_not_taken_up_by_a_probe_that_follows_a_burst() -> None:
    """What goes through at once after a pause looks like a link a hundred times as quick."""
    clock, sent = Clock(), []

    class Bursting:
        def probe(self, payload: bytes, _: float, response_bytes: int = 0) -> float:
            sent.append(len(payload))
            return 0.001 + max(len(payload) + response_bytes - (32 << 10), 0) * 8e-6

    link = LinkEstimator(clock)
    link.record(0, 0, 0.001)
    link.record_pair((1 << 16, 0.53), (1 << 16, 0.53))
    clock.now += 1000
    prober = Prober(Bursting(), link, ProbeBudget(clock), lambda: True)  # type: ignore[arg-type]
    prober.start()
    prober.connected()
    assert prober.wait_measured(5)
    prober.close()
    assert max(sent) <= 1 << 16
