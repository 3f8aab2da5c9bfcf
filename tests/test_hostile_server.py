"""A server that lies, breaks off or never ends: the application gets the right answer or an error of this project."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loadpart.v1 import offload_pb2
from loadpart_common.codecs.registry import CODECS
from loadpart_common.errors import InternalError, OffloadError
from loadpart_common.planning.plan import PlanKey
from loadpart_common.store.manifest import Manifest
from loadpart_common.tensors import TensorSpec
from loadpart_common.wire.error_codes import RETRY_AFTER_KEY
from loadpart_common.wire.framing import with_tensors
from loadpart_common.wire.methods import METHODS
from loadpart_device import (
    AccessError,
    ModelError,
    ModelNotFoundError,
    OffloadClient,
    SettingsError,
)
from loadpart_device.edges.connection import PendingReply, Tail
from loadpart_device.edges.plausible import Doubts
from tests.doorkeeper import Doorkeeper
from tests.support import RAW, eventually, inputs_for, run_here

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.daemon import Daemon

SPEC = TensorSpec("scores", "float32", (-1, 10))
IMPOSSIBLE = (math.nan, math.inf, -math.inf, -1.0, 1e300)


class Liar(Doorkeeper):
    """Alters what the daemon answers.

    Attributes:
        lies: For a method, what makes an answer of an answer: of its bytes, or of the messages of a stream.
    """

    def __init__(self, target: str) -> None:
        self.lies: dict[str, Callable[[Any], Any]] = {}
        super().__init__(target)

    def _unary(self, name: str, request: bytes, context: Any) -> bytes:
        return self.lies.get(name, bytes)(super()._unary(name, request, context))

    def _stream(self, name: str, request: bytes, context: Any) -> Iterator[bytes]:
        return iter(self.lies.get(name, iter)(super()._stream(name, request, context)))

    def edit(self, method: str, kind: type[Any], change: Callable[[Any], object]) -> None:
        """Has every message of a method changed."""

        def edited(data: bytes) -> bytes:
            message = kind.FromString(data)
            change(message)
            return bytes(message.SerializeToString())

        self.lies[method] = (lambda messages: map(edited, messages)) if METHODS[method].streams else edited


@pytest.fixture
def liar(server: Daemon) -> Iterator[Liar]:
    with Liar(server.target) as hostile:
        yield hostile


@pytest.fixture
def connect(liar: Liar, cache: Path) -> Callable[..., OffloadClient]:
    def make(**options: Any) -> OffloadClient:
        options = {"threads": 1, "cache": cache, "hedge": False} | options
        return OffloadClient(liar.target, "tiny", **options)

    return make


def forgive(client: OffloadClient) -> None:
    """Has the device ask the server again at once."""
    client._fleet.first.availability.succeeded()


def expected(client: OffloadClient) -> np.ndarray[Any, Any]:
    """What the device computes alone."""
    policy, client.policy = client.policy, "local"
    output = client.infer(*inputs_for(client.graph)).output
    client.policy = int(policy.removeprefix("cut ")) if policy.startswith("cut ") else policy
    return output


# Answers to inferences.


def answer(*arrays: np.ndarray[Any, Any], **figures: Any) -> bytes:
    return with_tensors(offload_pb2.InferResponse(tail_seconds=1e-9, server_seconds=1e-9, **figures), arrays, RAW)


GOOD = np.zeros((1, 10), np.float32)
HUGE = offload_pb2.Tensor(data_type=offload_pb2.DATA_TYPE_FLOAT32, shape=[1, 2**62, 2**62], data=b"1234")
NEGATIVE = offload_pb2.Tensor(data_type=offload_pb2.DATA_TYPE_FLOAT32, shape=[-1, -10], data=bytes(40))
EMPTY = offload_pb2.Tensor(data_type=offload_pb2.DATA_TYPE_FLOAT32, shape=[0, 2**62, 2**62, 2**62], data=b"")

NO_ANSWERS = {
    "another shape": answer(np.zeros((1, 11), np.float32)),
    "another rank": answer(np.zeros((1, 1, 10), np.float32)),
    "another type": answer(GOOD.astype(np.float64)),
    "another batch": answer(np.zeros((2, 10), np.float32)),
    "no items": answer(np.zeros((0, 10), np.float32)),
    "no tensors": answer(),
    "two tensors": answer(GOOD, GOOD),
    "nothing": b"",
    "garbage": b"\xff" * 100,
    "cut short": answer(GOOD)[:-1],
    "more at the end": answer(GOOD) + b"\x0a",
    "a bomb of fields": b"\x0a\x00" * 100_000,
    "a huge shape": offload_pb2.InferResponse(tensors=[HUGE]).SerializeToString(),
    "negative sizes": offload_pb2.InferResponse(tensors=[NEGATIVE]).SerializeToString(),
    "huge and empty": offload_pb2.InferResponse(tensors=[EMPTY]).SerializeToString(),
    "another message": offload_pb2.ProbeRequest(payload=b"x" * 40).SerializeToString(),
}


def test_what_is_no_answer_is_not_given_to_the_application(connect: Callable[..., OffloadClient], liar: Liar) -> None:
    with connect(policy=3) as client:
        right = expected(client)
        for lie, data in NO_ANSWERS.items():
            liar.lies["Infer"] = lambda _, data=data: data  # type: ignore[misc]
            forgive(client)
            result = client.infer(*inputs_for(client.graph))
            assert (result.plan.location, result.resumed) == ("local", True), lie
            assert "the server's answer is not one" in result.plan.reason, lie
            np.testing.assert_array_equal(result.output, right)


def test_an_answer_beyond_the_largest_message_is_not_taken(connect: Callable[..., OffloadClient], liar: Liar) -> None:
    with connect(policy=3, max_message_bytes=1 << 20) as client:
        right = expected(client)
        liar.lies["Infer"] = lambda _: answer(np.zeros((1, 1 << 20), np.float32))
        result = client.infer(*inputs_for(client.graph))
        assert result.plan.location == "local"
        np.testing.assert_array_equal(result.output, right)


@given(st.data())
def test_whatever_bytes_come_are_an_answer_or_an_error(data: st.DataObject) -> None:
    class Call:
        def result(self) -> bytes:
            return bytes(mutated)

    mutated = bytearray(answer(GOOD))
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        mutated[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=12))
        mutated = mutated or bytearray(b"\n")
    reply_codec = data.draw(st.sampled_from(list(CODECS)))
    tail = Tail("tiny", "digest", PlanKey(0, "raw"), (SPEC,), 1, reply_codec)
    pending = PendingReply(
        Call(), tail, Doubts("server"), started=0.0, encoded=time.perf_counter(), encoded_bytes=1, sent_bytes=1
    )
    try:
        reply = pending.result()
    except InternalError:
        return
    assert [(output.shape, output.dtype) for output in reply.outputs] == [((1, 10), np.dtype("float32"))]
    for seconds in (reply.network_seconds, reply.queue_seconds, reply.decode_seconds, reply.tail_seconds):
        assert 0 <= seconds < 60


def test_times_that_cannot_be_change_nothing(connect: Callable[..., OffloadClient], liar: Liar) -> None:
    with connect() as client:
        right = expected(client)
        assert client.wait_ready()
        for field, value in itertools.product(["server_seconds", "tail_seconds", "queue_seconds"], IMPOSSIBLE):
            liar.edit("Infer", offload_pb2.InferResponse, partial(setattr_of, field, value))
            for policy in (3, "offload", "load-aware", "bandwidth-only"):
                client.policy = policy
                result = client.infer(*inputs_for(client.graph))
                np.testing.assert_array_equal(result.output, right)
                assert all(0 <= seconds < 60 for seconds in dataclasses.astuple(result.timings)), (field, value)
            assert client.link is not None, (field, value)
            assert client.load is not None, (field, value)
            assert all(map(math.isfinite, (*client.link, *client.load))), (field, value)


def setattr_of(field: str, value: float, message: Any) -> None:
    setattr(message, field, value)


def test_statuses_that_cannot_be_are_ignored_counted_and_told_once(
    connect: Callable[..., OffloadClient], liar: Liar, caplog: pytest.LogCaptureFixture
) -> None:
    lie: tuple[str, float] = ("slow_down", math.inf)

    def set_status(message: Any) -> None:
        setattr(message.status, *lie)

    liar.edit("WatchStatus", offload_pb2.WatchStatusResponse, set_status)
    liar.edit("Infer", offload_pb2.InferResponse, set_status)
    with connect(policy=3) as client:
        doubts = client._fleet.first.connection.doubts
        for lie in itertools.product(
            ["backlog_seconds", "mean_backlog_seconds", "slow_down", "externality_seconds"], IMPOSSIBLE
        ):
            before = doubts.count
            assert client.infer(*inputs_for(client.graph)).plan.location == "split"
            assert doubts.count > before, lie
            assert client.load is None, lie
        client.policy = "load-aware"
        assert client.infer(*inputs_for(client.graph)).plan.location == "local", "nothing is known of the load"
        assert len([each for each in caplog.records if "a status that cannot be true" in each.message]) == 1


def test_figures_at_the_edge_of_what_can_be_do_no_harm(connect: Callable[..., OffloadClient], liar: Liar) -> None:
    def lie(message: Any) -> None:
        status = message.status
        status.backlog_seconds = status.mean_backlog_seconds = status.externality_seconds = 3600.0
        status.slow_down, status.active_devices, status.workers = 1e6, 2**32 - 1, 2**32 - 1

    liar.edit("WatchStatus", offload_pb2.WatchStatusResponse, lie)
    liar.edit("Infer", offload_pb2.InferResponse, lie)
    with connect(policy=3) as client:
        right = expected(client)
        client.wait_ready()
        for policy in (3, "load-aware", "bandwidth-only", "load-aware"):
            client.policy = policy
            np.testing.assert_array_equal(client.infer(*inputs_for(client.graph)).output, right)


def test_the_link_is_measured_once_probes_are_answered_truly(connect: Callable[..., OffloadClient], liar: Liar) -> None:
    lies = iter(IMPOSSIBLE)

    def lie(message: Any) -> None:
        message.server_seconds = next(lies, 0.0)
        if message.server_seconds == 0.0:
            liar.lies.pop("Probe", None)

    liar.edit("Probe", offload_pb2.ProbeResponse, lie)
    with connect() as client:
        right = expected(client)
        doubts = client._fleet.first.connection.doubts
        for count in range(1, len(IMPOSSIBLE) + 1):
            eventually(lambda count=count: doubts.count >= count, "the next probe")  # type: ignore[misc]
            assert client.link is None
            client._fleet.first._prober.measure_anew()
            result = client.infer(*inputs_for(client.graph))
            assert result.plan.location == "local"
            np.testing.assert_array_equal(result.output, right)
        assert client.wait_ready(5)
        assert client.infer(*inputs_for(client.graph)).plan.predicted_seconds is not None


# Refusals of servers and proxies.


def test_whatever_is_wrong_with_the_server_the_device_does_without(
    connect: Callable[..., OffloadClient], liar: Liar
) -> None:
    for_a_person = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
    with connect(policy=3) as client:
        right = expected(client)
        for status in set(grpc.StatusCode) - {grpc.StatusCode.OK} - for_a_person:
            liar.refuse("Infer", code=status)
            forgive(client)
            result = client.infer(*inputs_for(client.graph))
            assert (result.plan.location, result.resumed) == ("local", True), status
            np.testing.assert_array_equal(result.output, right)
        for status in for_a_person:
            liar.refuse("Infer", code=status)
            forgive(client)
            with pytest.raises(AccessError):
                client.infer(*inputs_for(client.graph))


def test_a_time_to_come_back_that_cannot_be_is_ignored(connect: Callable[..., OffloadClient], liar: Liar) -> None:
    with connect(policy=3) as client:
        for text in ("nan", "inf", "-inf", "-1", "1e9", "soon", ""):
            liar.refuse("Infer", code=grpc.StatusCode.RESOURCE_EXHAUSTED, metadata=((RETRY_AFTER_KEY, text),))
            forgive(client)
            assert client.infer(*inputs_for(client.graph)).plan.location == "local"
            why_not = client._fleet.first.unavailable()
            assert why_not is not None, text
            assert re.search(r"it is tried again in 0\.[0-3] s", why_not), (text, why_not)


# Lists of models.


def listing(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    def lie(data: bytes) -> bytes:
        message = offload_pb2.ListModelsResponse.FromString(data)
        change(message)
        return message.SerializeToString()

    return lie


def of_tiny(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    return listing(lambda message: [change(model) for model in message.models if model.name == "tiny"])


def tails(*seconds: float) -> Callable[[bytes], bytes]:
    def lie(model: Any) -> None:
        del model.tail_seconds[:]
        model.tail_seconds.extend(seconds)

    return of_tiny(lie)


HARMLESS_LISTS: dict[str, Callable[[bytes], bytes]] = {
    **{f"tails of {value}": tails(*[value] * 13) for value in IMPOSSIBLE},
    "huge tails": tails(*[3600.0] * 13),
    "no tails": tails(),
    "too many tails": tails(*[0.1] * 1000),
    "no largest message": listing(lambda message: message.ClearField("max_message_bytes")),
    "a tiny largest message": listing(lambda message: setattr(message, "max_message_bytes", 1)),
    "no largest batch": of_tiny(lambda model: model.ClearField("max_batch")),
    "plans that are none": of_tiny(
        lambda model: model.ready_plans.extend(
            [offload_pb2.Plan(cut=2**32 - 1, codec="raw"), offload_pb2.Plan(cut=3, codec="\x1b[31m")]
        )
    ),
    "twice the same": listing(lambda message: message.models.extend(list(message.models))),
}


@pytest.mark.parametrize("lie", HARMLESS_LISTS)
def test_a_list_of_lies_does_no_harm(connect: Callable[..., OffloadClient], liar: Liar, lie: str) -> None:
    liar.lies["ListModels"] = HARMLESS_LISTS[lie]
    with connect() as client:
        right = expected(client)
        eventually(lambda: liar.calls.count("ListModels") >= 3, "taking the list in")
        for policy in ("load-aware", "offload", 3):
            client.policy = policy
            np.testing.assert_array_equal(client.infer(*inputs_for(client.graph)).output, right)


def test_a_server_that_claims_to_take_no_message_is_asked_all_the_same(
    connect: Callable[..., OffloadClient], liar: Liar
) -> None:
    liar.lies["ListModels"] = HARMLESS_LISTS["no largest message"]
    with connect(policy=3) as client:
        assert client.infer(*inputs_for(client.graph)).plan.location == "split"


BAD_LISTS: dict[str, Callable[[bytes], bytes]] = {
    "garbage": lambda _: b"\xff" * 100,
    "not text": lambda _: b"\x0a\x03\x0a\x01\xff",
    "empty": lambda _: b"",
    "huge": listing(
        lambda message: message.models.extend(offload_pb2.ModelInfo(name="x" * 999) for _ in range(20_000))
    ),
    "another digest": of_tiny(lambda model: setattr(model, "digest", "0" * 64)),
    "a path for a digest": of_tiny(lambda model: setattr(model, "digest", "../../" + "0" * 58)),
    "no digest": of_tiny(lambda model: model.ClearField("digest")),
}


@pytest.mark.parametrize("lie", BAD_LISTS)
def test_a_list_that_is_none_is_an_error_of_this_project(liar: Liar, tmp_path: Path, lie: str) -> None:
    liar.lies["ListModels"] = BAD_LISTS[lie]
    with pytest.raises(OffloadError):
        OffloadClient(liar.target, "tiny", threads=1, cache=tmp_path / "cache")
    assert not left_over(tmp_path)


def test_a_list_that_is_none_later_on_changes_nothing(connect: Callable[..., OffloadClient], liar: Liar) -> None:
    with connect(policy=3) as client:
        right = expected(client)
        eventually(lambda: client._fleet.first.offer is not None, "the first list")
        for lie, altered in BAD_LISTS.items():
            liar.lies["ListModels"] = altered
            asked = liar.calls.count("ListModels")
            client._fleet.first._follower._backoff.reset()
            client._fleet.first._follower._stream.cancel()  # type: ignore[union-attr]  # so that it connects again
            eventually(lambda asked=asked: liar.calls.count("ListModels") > asked, f"another list, {lie}")  # type: ignore[misc]
            np.testing.assert_array_equal(client.infer(*inputs_for(client.graph)).output, right)


# Models.


def left_over(folder: Path) -> set[str]:
    """Whatever lies in a folder besides an empty cache."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")} - {"cache"}


def manifest(**changes: Any) -> Callable[[Iterator[bytes]], Iterator[bytes]]:
    """A stream whose manifest is changed."""

    def lie(messages: Iterator[bytes]) -> Iterator[bytes]:
        first = offload_pb2.GetModelResponse.FromString(next(messages))
        document = json.loads(first.manifest) | changes
        yield offload_pb2.GetModelResponse(manifest=json.dumps(document).encode()).SerializeToString()
        yield from messages

    return lie


def instead_of_manifest(data: bytes) -> Callable[[Iterator[bytes]], Iterator[bytes]]:
    def lie(messages: Iterator[bytes]) -> Iterator[bytes]:
        next(messages)
        yield offload_pb2.GetModelResponse(manifest=data).SerializeToString()
        yield from messages

    return lie


def then(*chunks: bytes, forever: bool = False) -> Callable[[Iterator[bytes]], Iterator[bytes]]:
    """A stream with the right manifest and other chunks."""

    def lie(messages: Iterator[bytes]) -> Iterator[bytes]:
        yield next(messages)
        for chunk in itertools.cycle(chunks) if forever else chunks:
            yield offload_pb2.GetModelResponse(chunk=chunk).SerializeToString()

    return lie


LYING_MODELS: dict[str, Callable[[Iterator[bytes]], Iterator[bytes]]] = {
    "nothing": lambda _: iter(()),
    "garbage": lambda _: iter([b"\xff" * 50]),
    "no manifest": lambda messages: itertools.islice(messages, 1, None),
    "a manifest that is none": instead_of_manifest(b"{"),
    "a manifest that is a list": instead_of_manifest(b"[]"),
    "a deep manifest": instead_of_manifest(b"[" * 1_000_000),
    "an endless manifest": manifest(labels=["x" * (17 << 20)]),
    "labels that cannot be written": manifest(labels=["\ud800"]),
    "no labels": manifest(labels=None),
    "infinitely many bytes": manifest(file_bytes=math.inf),
    "no number of bytes": manifest(file_bytes=math.nan),
    "a number of thousands of digits": manifest(file_bytes="9" * 10_000),
    "too many bytes": manifest(file_bytes=1 << 60),
    "less than no bytes": manifest(file_bytes=-1),
    "another digest": manifest(digest="0" * 64),
    "a path for a digest": manifest(digest="../../../x"),
    "a path for a format": manifest(model_format="../x"),
    "another format": manifest(model_format="mindir"),
    "labels that are a number": manifest(labels=7),
    "another file": then(b"x" * 100),
    "a file cut short": then(b"x"),
    "no file": then(),
    "an endless file": then(b"x" * 100_000, forever=True),
    "endlessly nothing": then(b"", forever=True),
    "a chunk beyond the largest message": then(b"x" * (19 << 20)),
}


@pytest.mark.parametrize("lie", LYING_MODELS)
def test_a_model_of_lies_is_an_error_and_leaves_nothing(liar: Liar, tmp_path: Path, lie: str) -> None:
    liar.lies["GetModel"] = LYING_MODELS[lie]
    with pytest.raises(OffloadError):
        OffloadClient(liar.target, "tiny", threads=1, cache=tmp_path / "cache", max_message_bytes=18 << 20)
    assert not left_over(tmp_path)


def slowly(chunk: bytes, seconds: float) -> Callable[[Iterator[bytes]], Iterator[bytes]]:
    def lie(messages: Iterator[bytes]) -> Iterator[bytes]:
        for message in then(chunk, forever=True)(messages):
            yield message
            time.sleep(seconds)

    return lie


@pytest.mark.parametrize(("chunk", "seconds"), [(b"x", 2.0), (b"x", 0.05)], ids=["stalled", "in drops"])
def test_a_download_that_does_not_get_on_is_given_up(
    liar: Liar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: bytes, seconds: float
) -> None:
    monkeypatch.setattr("loadpart_device.model_cache._PATIENCE_SECONDS", 0.3)
    liar.lies["GetModel"] = slowly(chunk, seconds)
    started = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="hardly anything of the model came for"):
        OffloadClient(liar.target, "tiny", threads=1, cache=tmp_path / "cache")
    assert time.monotonic() - started < 1.5
    assert not left_over(tmp_path)


def test_a_cache_that_is_full_is_an_error_of_this_project(
    server: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 3}))
    with pytest.raises(ModelError, match="3 are free"):
        OffloadClient(server.target, "tiny", threads=1, cache=tmp_path / "cache")
    assert not left_over(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ModelError, match="cannot be kept"):
        OffloadClient(server.target, "tiny", threads=1, cache=tmp_path / "file")


HOSTILE_LABELS = ["\x1b[31mred\n", "[/nothing]", "a" * 1000]


def test_labels_of_a_hostile_server_do_not_stay_for_an_honest_one(server: Daemon, liar: Liar, tmp_path: Path) -> None:
    liar.lies["GetModel"] = manifest(labels=HOSTILE_LABELS, name="../../elsewhere", graph={"lie": []}, layers=[])
    liar.lies["ListModels"] = of_tiny(lambda model: setattr(model, "labels_digest", "of the lie"))
    for _ in range(2):
        with OffloadClient(liar.target, "tiny", threads=1, cache=tmp_path / "cache", policy="local") as client:
            assert len(client.labels) == len(HOSTILE_LABELS)
            lied = client.infer(*inputs_for(client.graph)).output
    with OffloadClient(server.target, "tiny", threads=1, cache=tmp_path / "cache", policy=3) as client:
        assert client.labels == ()
        result = client.infer(*inputs_for(client.graph))
        assert result.plan.location == "split"
        np.testing.assert_array_equal(result.output, lied)
    (folder,) = (tmp_path / "cache").iterdir()
    assert {path.name for path in folder.iterdir()} == {"model.toy", "manifest.json"}
    assert Manifest.from_bytes((folder / "manifest.json").read_bytes(), "").name == "tiny"


def test_another_file_under_the_same_digest_is_noticed_when_it_is_used(
    server: Daemon, liar: Liar, tmp_path: Path
) -> None:
    """Of the inference, too: the hostile server claims to serve a file that it does not have."""
    with OffloadClient(server.target, "tiny", threads=1, cache=tmp_path, policy=3) as client:
        liar.lies["ListModels"] = of_tiny(lambda model: setattr(model, "digest", "1" * 64))
    with pytest.raises(OffloadError):
        OffloadClient(liar.target, "tiny", threads=1, cache=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"tiny-{client.digest[:16]}"]


# What is shown to people.


def test_nothing_that_a_server_says_steers_the_terminal(liar: Liar, tmp_path: Path) -> None:
    image = tmp_path / "[i].png"
    Image.new("RGB", (32, 32)).save(image)
    options = ("--server", liar.target, "--model", "tiny", "--cache", str(tmp_path / "cache"), "--threads", "1")
    ends = []
    hostile = "\x1b]0;owned\x07\n[/nothing] [bold]"

    def infer(*more: str) -> subprocess.CompletedProcess[str]:
        ends.append(run_here("loadpart-device", "infer", *options, "--image", str(image), *more))
        return ends[-1]

    liar.lies["GetModel"] = manifest(labels=[hostile] * 10)
    liar.lies["ListModels"] = of_tiny(lambda model: setattr(model, "labels_digest", ""))
    assert r"\x1b]0;owned\x07\n[/nothing] [bold]" in infer("--policy", "local").stdout
    assert len(infer("--policy", "local", "--json").stdout.splitlines()) == 1
    liar.text = hostile
    liar.refuse("Infer", code=grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert r"\x1b]0;owned\x07\n[/nothing] [bold]" in infer("--policy", "3").stdout
    assert [ended.returncode for ended in ends] == [0, 0, 0]
    liar.refuse("ListModels", code=grpc.StatusCode.UNAUTHENTICATED)
    assert infer().stderr == r"loadpart-device: \x1b]0;owned\x07\n[/nothing] [bold]" + "\n"
    liar.refusals = {}
    liar.lies["ListModels"] = listing(lambda message: [setattr(model, "name", hostile) for model in message.models])
    assert r"expected one of \x1b]0;owned" in infer().stderr
    assert not any("\x1b" in ended.stdout + ended.stderr for ended in ends)


# What the application itself says.


def test_a_deadline_that_is_none_is_an_error(connect: Callable[..., OffloadClient]) -> None:
    with connect(policy="local") as client:
        for deadline in (math.inf, math.nan, 0, -1, True, "1"):
            with pytest.raises(SettingsError, match="deadline: expected a number of seconds above 0"):
                connect(deadline=deadline)
            with pytest.raises(SettingsError, match="deadline: expected a number of seconds above 0"):
                client.infer(*inputs_for(client.graph), deadline=deadline)  # type: ignore[arg-type]


def test_a_policy_that_is_none_is_an_error(connect: Callable[..., OffloadClient]) -> None:
    for policy in (True, False, 1.5, None):
        with pytest.raises(SettingsError, match="policy"):
            connect(policy=policy)


def test_a_full_disk_under_the_decision_log_does_not_disturb_inferences(
    connect: Callable[..., OffloadClient], caplog: pytest.LogCaptureFixture
) -> None:
    with connect(policy=3, decision_log="/dev/full") as client:
        for _ in range(3):
            assert client.infer(*inputs_for(client.graph)).plan.location == "split"
    assert len([each for each in caplog.records if "decision" in each.message]) == 1
