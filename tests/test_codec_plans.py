"""Plans with codecs: what they cost, which of them may be chosen, and how they run between a device and a daemon."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from benchmarks.daemon import daemon, metric

from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS
from loadpart_common.errors import InputError, SettingsError
from loadpart_common.latency.profile import Profile
from loadpart_common.planning.plan import (
    PlanKey,
    Point,
    coded_plans,
    plan_at,
    points,
    rated_cost,
    undominated_codecs,
)
from loadpart_common.wire.framing import with_tensors
from loadpart_device import OffloadClient
from loadpart_device.allowed_codecs import AllowedCodecs, MeasuredPlan, accuracy_path, read_measured, save_measured
from loadpart_device.codec_costs import CodecCosts
from loadpart_edge.tail_times import TailTimes
from tests.support import Clock, RawClient, eventually, run_here
from tests.toy import ToyModel
from tests.toy_networks import write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.daemon import Daemon

    from loadpart_common.graph import Graph

WEBP = PlanKey(0, "webp-lossless")
LOSSLESS = {"raw", "webp-lossless"}


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    return ToyModel(write("tiny", tmp_path_factory.mktemp("toy"))).graph


def picture(seed: int = 0) -> np.ndarray:
    """A picture that compresses."""
    rng = np.random.default_rng(seed)
    slope = np.add.outer(np.arange(32), np.arange(32))[..., None] * np.array([1, 2, 3])
    return (slope + rng.integers(0, 3, slope.shape)).clip(0, 255).astype(np.uint8)[None]


# Points.


def test_a_codec_has_plans_where_it_takes_something_that_crosses(graph: Graph) -> None:
    assert coded_plans(graph, ["raw", "webp-lossless"]) == [WEBP]
    cuts = {cut.index for cut in graph.cuts[:-1]}
    assert {plan.cut for plan in coded_plans(graph, ["q8z"])} == cuts - {0}


def test_codecs_cost_the_device_the_link_and_the_server_their_share(graph: Graph) -> None:
    heads, tails = np.linspace(0, 1, 13), np.linspace(1, 0, 13)
    cost = rated_cost(graph, PlanKey(3, "q8z"), CODECS["q8z"].rates)
    by_key = {point.key: point for point in points(graph, heads, tails, {PlanKey(3, "q8z"): cost})}
    raw, coded = by_key[PlanKey(3, "raw")], by_key[PlanKey(3, "q8z")]
    assert coded.device_seconds == raw.device_seconds + cost.encode_seconds
    assert coded.server_seconds == raw.server_seconds + cost.decode_seconds
    assert coded.uplink_bytes == round(raw.uplink_bytes * CODECS["q8z"].rates.share)
    assert list(by_key)[-1].is_local


def test_of_a_cuts_plans_those_stay_that_something_speaks_for() -> None:
    def point(codec: str, *figures: float) -> Point:
        return Point(PlanKey(1, codec), figures[0], int(figures[1]), figures[2])

    raw, small = point("raw", 1, 100, 1), point("q8z", 1.2, 20, 1.1)
    worse, useless = point("q8", 1.2, 25, 1.1), point("webp-lossless", 1.5, 100, 1.2)
    other = Point(PlanKey(2, "q8"), 2.0, 200, 2.0)
    assert undominated_codecs([raw, small, worse, useless, other]) == [raw, small, other]
    better = point("jpeg-75", 0.5, 10, 0.5)
    assert undominated_codecs([raw, better]) == [raw, better], "the raw one stays, since others fall back on it"


def test_plans_say_their_codec_unless_it_is_none(graph: Graph) -> None:
    assert [str(plan_at(graph, 3, codec)) for codec in ("raw", "q8z")] == ["cut 3", "cut 3, q8z"]


# What is learned.


def test_a_device_learns_bytes_and_seconds_and_forgets_bytes_of_other_pictures(graph: Graph) -> None:
    clock = Clock()
    costs = CodecCosts(graph, [WEBP], clock)
    rated = costs.costs({WEBP: 0.5})[WEBP]
    assert rated.nbytes == pytest.approx(3072 * CODECS["webp-lossless"].rates.share)
    assert rated.decode_seconds == 0.5
    costs.time_codecs()
    timed = costs.costs({WEBP: 0.5})[WEBP]
    assert timed.encode_seconds != rated.encode_seconds
    assert costs.record(WEBP, 2000, 0.25)
    learned = costs.costs({WEBP: 0.5})[WEBP]
    assert (learned.nbytes, learned.encode_seconds) == (2000, 0.25)
    assert not costs.record(WEBP, 2010, 0.25), "as before"
    changes = [costs.record(WEBP, 1000, 0.25) for _ in range(40)]
    assert changes[0]
    assert costs.costs({WEBP: 0.5})[WEBP].nbytes == pytest.approx(1000, rel=0.01)
    assert not costs.record(PlanKey(0, "raw"), 3072, 0.1), "of a plan without a codec there is nothing to learn"
    assert costs.costs({}) == {}, "the server does not offer it"
    clock.now += 59
    assert not costs.forget_old()
    clock.now += 20
    assert costs.forget_old()
    assert costs.costs({WEBP: 0.5})[WEBP].nbytes == rated.nbytes
    assert not costs.forget_old()


def test_a_server_learns_what_decoding_takes() -> None:
    class Flat:
        def tail_seconds(self, measured: dict[int, float]) -> np.ndarray:
            return np.full(13, measured.get(0, 1.0))

    times = TailTimes(Flat(), Profile({}, {}), {WEBP: 0.01})  # type: ignore[arg-type]
    assert times.decode_seconds(WEBP) == 0.01
    assert times.decode_seconds(PlanKey(0, "raw")) == 0
    assert times.observe(WEBP, 0.02, 10.0), "the host was ten times slower than it is when idle"
    assert times.decode_seconds(WEBP) == 0.002
    assert not times.observe(PlanKey(0, "raw"), 0.1, 1.0)


# What is allowed.


def test_without_a_word_nothing_may_be_lost() -> None:
    allowed = AllowedCodecs()
    assert set(allowed.names) == LOSSLESS
    assert allowed.allows(WEBP)
    assert not allowed.allows(PlanKey(3, "q8z"))
    assert allowed.allows(PlanKey(12))


def test_a_codec_that_is_named_may_be_used() -> None:
    allowed = AllowedCodecs(["q8z"])
    assert allowed.allows(PlanKey(3, "q8z"))
    assert allowed.allows(PlanKey(3, "raw"))
    assert not allowed.allows(WEBP)


def measured(cut: int, *, worst: float = 0.0, agreement: float = 1.0, pictures: int = 1000) -> MeasuredPlan:
    return MeasuredPlan(cut, "q8z", worst / 2, worst, agreement, pictures)


@pytest.mark.parametrize(
    ("bounds", "plan", "allows"),
    [
        ({"max_error": 0.02}, None, False),
        ({"max_error": 0.02}, measured(3, worst=0.01), True),
        ({"max_error": 0.02}, measured(3, worst=0.019), False),
        ({"max_error": 0.02}, measured(4, worst=0.01), False),
        ({"max_error": 0.02}, measured(3, worst=0.01, pictures=199), False),
        ({"min_agreement": 0.99}, measured(3, worst=0.5), True),
        ({"min_agreement": 0.99}, measured(3, agreement=0.98), False),
        ({"min_agreement": 0.999}, measured(3, pictures=500), False),
        ({"min_agreement": 0.99, "max_error": 0.02}, measured(3, worst=0.5), False),
        ({"min_agreement": 0.99, "max_error": 0.02}, measured(3, worst=0.01), True),
    ],
)
def test_a_bound_allows_what_was_measured_to_be_within_it(
    bounds: dict[str, float], plan: MeasuredPlan | None, allows: bool
) -> None:
    allowed = AllowedCodecs(**bounds)  # type: ignore[arg-type]
    allowed.measured([plan] if plan else [])
    assert allowed.allows(PlanKey(3, "q8z")) is allows
    assert allowed.allows(WEBP)


def test_measurements_are_kept_by_model(tmp_path: Path) -> None:
    plans = [measured(3), measured(5, worst=0.1)]
    assert read_measured(tmp_path / "new", "a" * 64) == []
    path = save_measured(tmp_path / "new", "a" * 64, plans)
    assert path == accuracy_path(tmp_path / "new", "a" * 64)
    assert read_measured(tmp_path / "new", "a" * 64) == plans
    assert read_measured(tmp_path / "new", "b" * 64) == []
    path.write_text("{")
    with pytest.raises(SettingsError, match="is not a measurement of accuracy"):
        read_measured(tmp_path / "new", "a" * 64)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"codecs": ["gif"]}, "codecs: expected some of raw, webp-lossless, .* got 'gif'"),
        ({"reply_codec": "gif"}, "reply_codec: expected some of .* got 'gif'"),
        ({"max_error": 2}, "max_error: expected a number from 0 to 1, got 2"),
        ({"min_agreement": "much"}, "min_agreement: expected a number from 0 to 1, got 'much'"),
        ({"policy": "3:gif"}, "codec: expected one of .* got 'gif'"),
        ({"policy": "3:"}, "policy: expected one of .* or CUT:CODEC, got '3:'"),
    ],
)
def test_what_is_no_codec_and_no_bound_is_refused(
    server: Daemon, cache: Path, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        OffloadClient(server.target, "tiny", cache=cache, threads=1, **wrong)


# Between a device and a daemon.


@pytest.fixture
def connect(server: Daemon, cache: Path) -> Iterator[Callable[..., OffloadClient]]:
    clients = []

    def make(**options: Any) -> OffloadClient:
        client = OffloadClient(server.target, "tiny", threads=1, cache=cache, **options)
        clients.append(client)
        assert client.wait_ready()
        return client

    yield make
    for client in clients:
        client.close()


def codecs_of(client: OffloadClient) -> set[str]:
    return {point.key.codec for point in client.plans} - {""}


def test_plans_have_the_codecs_that_both_sides_know_and_the_application_allows(
    connect: Callable[..., OffloadClient],
) -> None:
    client, lossy, raw = connect(), connect(codecs=["jpeg-90"]), connect(codecs=[])
    eventually(lambda: codecs_of(client) == LOSSLESS, "knowing the plans")
    eventually(lambda: codecs_of(lossy) == {"raw", "jpeg-90"}, "knowing the plans")
    eventually(lambda: codecs_of(raw) == {"raw"}, "knowing the plans")


@pytest.mark.parametrize(
    ("policy", "codec", "is_exact"),
    [("0:webp-lossless", "webp-lossless", True), ("0:jpeg-95", "jpeg-95", False), ("5:q8", "q8", False),
     ("5:q8z", "q8z", False), ("5", "raw", True)],
)  # fmt: skip
def test_a_plan_with_a_codec_gives_the_bits_that_it_promises(
    connect: Callable[..., OffloadClient], policy: str, codec: str, is_exact: bool
) -> None:
    client = connect(hedge=False)
    for seed in range(3):
        client.policy = "local"
        expected = client.infer(picture(seed)).output
        client.policy = int(policy) if policy.isdecimal() else policy
        result = client.infer(picture(seed))
        assert (result.plan.codec, result.plan.exact, result.resumed) == (codec, is_exact, False)
        assert np.array_equal(result.output, expected) is is_exact, result.plan.reason
        np.testing.assert_allclose(result.output, expected, rtol=0.05, atol=0.05 * np.abs(expected).max())
        timings = result.timings
        assert timings.decode >= 0
        assert timings.total >= timings.network + timings.queue + timings.decode + timings.tail


def test_numbers_cross_in_eight_bits_and_several_tensors_each_for_itself(tmp_path: Path) -> None:
    layers = [["first", "affine", [[-1, 0]]], ["second", "affine", [[-1, 1]]], ["join", "concat", [[0, 0], [1, 0]]]]
    inputs = [["a", "float32", [-1, 600]], ["b", "float32", [-1, 8]]]
    write("numbers", tmp_path, {"inputs": inputs, "layers": layers, "outputs": [[2, 0]]})
    with (
        daemon("--store", str(tmp_path), "--threads", "1") as own,
        OffloadClient(
            own.target, "numbers", threads=1, cache=tmp_path / "cache", codecs=["q8z"], reply_codec="q8"
        ) as client,
    ):
        assert client.wait_ready()
        eventually(lambda: PlanKey(0, "q8z") in {point.key for point in client.plans}, "knowing the plan")
        rng = np.random.default_rng(0)
        arrays = [rng.standard_normal((1, 600), np.float32), rng.standard_normal((1, 8), np.float32)]
        client.policy = "local"
        expected = client.infer(*arrays).output
        client.policy = "0:q8z"
        result = client.infer(*arrays)
        assert (result.plan.codec, result.plan.exact) == ("q8z", False)
        assert 0 < np.abs(result.output - expected).max() < 0.1


def test_a_batch_and_a_refused_tensor_cross_with_a_codec(connect: Callable[..., OffloadClient]) -> None:
    client = connect(hedge=False, policy="0:webp-lossless")
    noise = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    batch = np.concatenate([picture(number) for number in range(4)])
    results = [client.infer(each) for each in (batch, noise)]
    client.policy = "local"
    for result, each in zip(results, (batch, noise), strict=True):
        assert result.plan.codec == "webp-lossless"
        assert np.array_equal(result.output, client.infer(each).output)


def test_outputs_have_a_codec_of_their_own(connect: Callable[..., OffloadClient]) -> None:
    client = connect(hedge=False, policy=0, reply_codec="q8")
    result = client.infer(picture())
    client.policy = "local"
    assert not result.plan.exact
    assert np.array_equal(client.infer(picture()).output, result.output), "so few numbers go raw"


def test_a_client_learns_what_a_codec_costs(connect: Callable[..., OffloadClient]) -> None:
    client = connect(hedge=False, policy="0:webp-lossless")

    def point() -> Point:
        return next(point for point in client.plans if point.key == WEBP)

    eventually(lambda: WEBP in {point.key for point in client.plans}, "knowing the plan")
    client.infer(picture())
    nbytes = len(CODECS["webp-lossless"].encode(picture()) or b"")
    eventually(lambda: abs(point().uplink_bytes - nbytes) < 100, "learning the bytes")
    eventually(lambda: point().server_seconds > 0, "learning the server's share")


def test_metrics_and_json_tell_the_codec(connect: Callable[..., OffloadClient], server: Daemon) -> None:
    client = connect(hedge=False, policy="0:webp-lossless", metrics_listen="127.0.0.1:0")
    before = metric(server.metrics, "loadpart_edge_received_bytes_total", model="tiny")
    document = client.infer(picture()).to_json()
    assert document["plan"]["codec"] == "webp-lossless"
    assert "decode" in document["timings"]
    nbytes = len(CODECS["webp-lossless"].encode(picture()) or b"")
    eventually(
        lambda: metric(server.metrics, "loadpart_edge_received_bytes_total", model="tiny") == before + nbytes,
        "counting the encoded bytes",
    )
    url = f"http://{client.metrics_address}/metrics"
    labels = {"model": "tiny", "location": "offload", "cut": "0", "codec": "webp-lossless"}
    assert metric(url, "loadpart_device_plans_total", **labels) == 1


def test_a_server_without_a_codec_is_never_sent_it(store: Path, cache: Path) -> None:
    with (
        daemon("--store", str(store), "--models", "tiny", "--threads", "1", "--codecs", "q8") as plain,
        OffloadClient(
            plain.target, "tiny", threads=1, cache=cache, policy="0:webp-lossless", reply_codec="q8z"
        ) as client,
        RawClient(plain.target) as raw,
    ):
        assert client.wait_ready()
        result = client.infer(picture())
        assert result.plan.location == "local"
        assert "the server does not take the codec 'webp-lossless'" in result.plan.reason
        client.policy = 0
        assert client.infer(picture()).plan.location == "offload", "it is not asked for that codec of answers either"
        with pytest.raises(InputError, match="unknown codec 'webp-lossless': expected one of raw, q8"):
            raw.infer([picture()], model="tiny", digest=client.digest, cut=0, codec="webp-lossless")


def test_payloads_that_are_none_are_refused_and_the_server_goes_on(server: Daemon) -> None:
    codec = CODECS["webp-lossless"]
    good = bytes(codec.encode(picture()) or b"")
    with RawClient(server.target) as raw:
        digest = raw.models()["tiny"].digest
        (expected,) = raw.infer([picture()], model="tiny", digest=digest, cut=0, codec="raw")
        head = offload_pb2.InferRequest(model="tiny", digest=digest, cut=0, codec=codec.name)
        message = with_tensors(head, [picture()], codec)
        for wrong in (bytes(3) + good[3:], b"\xff" * 4 + good[4:], bytes(100)):
            padded = message.replace(good, wrong + bytes(len(good) - len(wrong)))
            with pytest.raises(InputError, match="tensor 0: expected"):
                raw.infer_bytes(padded)
        for _ in range(3):
            (again,) = raw.infer([picture()], model="tiny", digest=digest, cut=0, codec="raw")
            assert np.array_equal(again, expected)


def test_refused_calls_are_gone_at_once(store: Path) -> None:
    codec = CODECS["webp-lossless"]
    with (
        daemon("--store", str(store), "--models", "tiny", "--threads", "1", "--refusals-per-second", "1e9") as own,
        RawClient(own.target) as raw,
    ):
        head = offload_pb2.InferRequest(model="tiny", digest=raw.models()["tiny"].digest, cut=0, codec=codec.name)
        good = bytes(codec.encode(picture()) or b"")
        wrong = with_tensors(head, [picture()], codec).replace(good, bytes(len(good)))
        statuses = {raw.status_of("Infer", wrong) for _ in range(1000)}
        assert statuses == {grpc.StatusCode.INVALID_ARGUMENT}, "a connection carries 32 calls at a time, and no more"


# The command lines.


def test_accuracy_measures_codecs_and_clients_go_by_it(
    server: Daemon, cache: Path, tmp_path: Path, photograph: Path
) -> None:
    folder = tmp_path / "accuracy"
    common = ("--server", server.target, "--model", "tiny", "--threads", "1", "--cache", str(cache))
    ended = run_here(
        "loadpart-device", "accuracy", *common, "--images", str(photograph), "--crops", "200", "--codecs", "jpeg-90",
        "--accuracy-folder", str(folder), "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert {row["pictures"] for row in rows} == {200}
    coded = [row for row in rows if row["plan"].endswith("jpeg-90")]
    assert coded
    assert all(0 < row["worst_error"] < 0.8 for row in coded)
    with OffloadClient(server.target, "tiny", threads=1, cache=cache, max_error=1.0, accuracy_folder=folder) as client:
        assert client.wait_ready()
        eventually(lambda: codecs_of(client) == {*LOSSLESS, "jpeg-90"}, "using what was measured")
    with OffloadClient(server.target, "tiny", threads=1, cache=cache, max_error=1e-9, accuracy_folder=folder) as client:
        assert client.wait_ready()
        eventually(lambda: "webp-lossless" in codecs_of(client), "knowing the plans")
        assert codecs_of(client) == LOSSLESS


def test_plan_weighs_codecs_and_tells_their_errors(server: Daemon, cache: Path, tmp_path: Path) -> None:
    with RawClient(server.target) as raw:
        save_measured(tmp_path, raw.models()["tiny"].digest, [MeasuredPlan(3, "q8z", 0.01, 0.0625, 1.0, 300)])
    common = ("--server", server.target, "--model", "tiny", "--threads", "1", "--cache", str(cache))
    common += ("--bandwidth", "0.05", "--all", "--codecs", "q8z", "--accuracy-folder", str(tmp_path))
    ended = run_here("loadpart-device", "plan", *common, "--json")
    assert ended.returncode == 0, ended.stderr
    rows = {(row["cut"], row["codec"]): row for row in map(json.loads, ended.stdout.splitlines())}
    assert {codec for _, codec in rows} == {"", "raw", "q8z"}
    assert (rows[3, "q8z"]["error"], rows[3, "q8z"]["is_error_measured"]) == (0.0625, True)
    assert (rows[5, "q8z"]["error"], rows[5, "q8z"]["is_error_measured"]) == (CODECS["q8z"].rates.error, False)
    assert rows[3, "raw"]["error"] == 0
    table = run_here("loadpart-device", "plan", *common).stdout
    assert "6.2%" in table
    assert "~0.5%" in table
