"""The door of a real daemon: certificates, tokens, rights, what is told to whom is refused, and quotas."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from benchmarks.daemon import daemon
from benchmarks.security import http2
from grpc._cython import cygrpc

from loadpart.v1 import offload_pb2
from loadpart_common.errors import (
    AuthenticationError,
    ModelNotFoundError,
    PermissionDeniedError,
    SettingsError,
    UnavailableError,
)
from loadpart_common.wire.credentials import Credentials
from loadpart_common.wire.endpoint import Endpoint
from loadpart_common.wire.error_codes import ERROR_KEY
from loadpart_common.wire.limits import DEVICE_KEY, OWN_CONNECTION
from loadpart_common.wire.methods import METHODS
from loadpart_device import OffloadClient
from loadpart_device.edges.availability import Availability
from loadpart_device.edges.connection import Connection
from loadpart_device.edges.follower import Follower
from loadpart_edge.access.client import Right
from loadpart_edge.access.guard import Guard
from loadpart_edge.metrics import Metrics
from loadpart_edge.rpc.door import Door, Entry
from loadpart_edge.rpc.pending_reads import PendingReads
from loadpart_edge.rpc.quota import Quota, QuotaError
from loadpart_edge.rpc.tarpit import Tarpit
from loadpart_edge.settings import load_settings
from tests.support import Clock, eventually, run_here
from tests.toy_networks import NETWORKS, write, write_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from benchmarks.daemon import Daemon

    from loadpart_edge.rpc.call import Call

HEALTH = {name: f"/grpc.health.v1.Health/{name}" for name in ("Check", "Watch")}
PATHS = {name: method.path for name, method in METHODS.items()} | HEALTH
RIGHT_OF = dict.fromkeys(PATHS, "watch") | {"Infer": "infer", "Probe": "infer", "GetModel": "fetch"}
REQUESTS = {"GetModel": offload_pb2.GetModelRequest(model="tiny").SerializeToString()}
IMAGE = np.zeros((1, 32, 32, 3), np.uint8)


def run(*arguments: object) -> None:
    ended = run_here("loadpart-edge", "credentials", *map(str, arguments))
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Credentials of a server and its clients, and of another one."""
    folder = tmp_path_factory.mktemp("credentials")
    for each in (folder / "ours", folder / "foreign"):
        run("init", "--folder", each)
        run("add", "full", "--folder", each)
    for right in ("infer", "fetch", "watch"):
        run("add", right, "--right", right, "--folder", folder / "ours")
    for name in ("leaving", "rotating"):
        run("add", name, "--folder", folder / "ours")
    return folder


def tls(folder: Path) -> tuple[str, ...]:
    return ("--tls-certificate", f"{folder}/ours/server.crt", "--tls-key", f"{folder}/ours/server.key")


@pytest.fixture(scope="module")
def locked(folder: Path, store: Path) -> Iterator[Daemon]:
    """A daemon that asks for certificates and for tokens."""
    ours = folder / "ours"
    mutual = ("--tls-client-ca", str(ours / "ca.crt"), "--clients", str(ours / "clients.toml"))
    probed = ("--health-listen", "127.0.0.1:0")
    with daemon("--store", str(store), "--threads", "1", *tls(folder), *mutual, *probed) as running:
        yield running


def shown(folder: Path, name: str, whose: str = "ours") -> Credentials:
    device = folder / whose / "devices" / name
    return Credentials(
        folder / "ours" / "ca.crt", device / "client.crt", device / "client.key", token_file=device / "token"
    )


@contextlib.contextmanager
def channel(server: Daemon, credentials: Credentials) -> Iterator[grpc.Channel]:
    secure = credentials.channel_credentials()
    assert secure is not None
    with grpc.secure_channel(server.target, secure) as open_channel:
        yield open_channel


def status(to: grpc.Channel, name: str, credentials: Credentials) -> str:
    """The status of a call's first response."""
    call = to.unary_stream(PATHS[name])(REQUESTS.get(name, b""), metadata=credentials.metadata(), timeout=10)
    try:
        next(iter(call))
    except grpc.RpcError as error:
        return str(error.code().name)
    finally:
        call.cancel()
    return "OK"


@pytest.mark.parametrize("name", ["full", "infer", "fetch", "watch"])
def test_rights_are_respected_on_every_method(locked: Daemon, folder: Path, name: str) -> None:
    credentials = shown(folder, name)
    with channel(locked, credentials) as to:
        found = {method: status(to, method, credentials) for method in PATHS}
    for method, code in found.items():
        assert (code != "PERMISSION_DENIED") == (name in {"full", RIGHT_OF[method]}), found
        assert code != "UNAUTHENTICATED"


def test_probes_are_told_of_health_without_credentials_and_of_nothing_else(locked: Daemon) -> None:
    with grpc.insecure_channel(locked.health) as to:
        found = {method: status(to, method, Credentials()) for method in PATHS}
    assert found == {method: "OK" if method in HEALTH else "UNIMPLEMENTED" for method in PATHS}


def test_a_certificate_alone_names_a_client_and_a_wrong_token_beside_it_does_not(locked: Daemon, folder: Path) -> None:
    alone = replace(shown(folder, "watch"), token_file=None)
    with channel(locked, alone) as to:
        assert status(to, "ListModels", alone) == "OK"
        assert status(to, "Infer", alone) == "PERMISSION_DENIED"
        assert status(to, "ListModels", replace(alone, token="wrong")) == "UNAUTHENTICATED"


def wrong_credentials(folder: Path) -> dict[str, Credentials]:
    right = shown(folder, "full")
    return {
        "the TLS handshake failed; is the server's certificate from": replace(right, ca=folder / "foreign" / "ca.crt"),
        "Hostname Verification": replace(right, server_name="evil.example.org"),
        "expect another certificate of this device": Credentials(folder / "ours" / "ca.crt"),
        "the server ended the TLS handshake": replace(shown(folder, "full", "foreign"), token_file=None),
        "does it expect TLS": Credentials(),
    }


def test_a_failed_handshake_is_told_to_the_application(locked: Daemon, folder: Path, tmp_path: Path) -> None:
    def told(credentials: Credentials) -> str:
        with pytest.raises(ModelNotFoundError) as raised:
            OffloadClient(Endpoint(locked.target, credentials), "tiny", cache=tmp_path, connect_timeout=0.5)
        return str(raised.value)

    wrong = wrong_credentials(folder)
    with ThreadPoolExecutor(len(wrong)) as pool:
        for expected, message in zip(wrong, pool.map(told, wrong.values()), strict=True):
            assert expected in message


def test_the_sdk_raises_what_a_person_must_mend(locked: Daemon, folder: Path, cache: Path) -> None:
    foreign = replace(shown(folder, "full"), token_file=folder / "foreign" / "devices" / "full" / "token")
    with pytest.raises(AuthenticationError, match="the token is not known"):
        OffloadClient(Endpoint(locked.target, foreign), "tiny", cache=cache)
    with pytest.raises(PermissionDeniedError, match="client 'fetch' lacks the right 'watch'"):
        OffloadClient(Endpoint(locked.target, shown(folder, "fetch")), "tiny", cache=cache)


def test_whoever_is_revoked_loses_streams_too(locked: Daemon, folder: Path) -> None:
    credentials = shown(folder, "leaving")
    with channel(locked, credentials) as to:
        stream = to.unary_stream(PATHS["WatchStatus"])(b"", metadata=credentials.metadata(), timeout=20)
        next(stream)
        run("revoke", "leaving", "--folder", folder / "ours")
        with pytest.raises(grpc.RpcError) as raised:
            list(stream)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert raised.value.details() == "client 'leaving' was revoked"


def test_certificate_and_token_change_while_a_device_infers(locked: Daemon, folder: Path, cache: Path) -> None:
    ours, credentials = folder / "ours", shown(folder, "rotating")
    done: Counter[str] = Counter()
    with OffloadClient(
        Endpoint(locked.target, credentials), "tiny", policy="offload", cache=cache, threads=1, hedge=False
    ) as client:
        client.wait_ready()
        before = credentials.metadata()
        for command in (("init", "--renew-server"), ("add", "rotating", "--replace")):
            run(*command, "--folder", ours)
            for _ in range(20):
                done[client.infer(IMAGE).plan.location] += 1
        assert credentials.metadata() != before

        def is_old_one_refused() -> bool:
            done[client.infer(IMAGE).plan.location] += 1
            with channel(locked, shown(folder, "full")) as to:
                call = to.unary_unary(PATHS["ListModels"])
                try:
                    call(b"", metadata=before, timeout=5)
                except grpc.RpcError as error:
                    return error.code() is grpc.StatusCode.UNAUTHENTICATED
            return False

        eventually(is_old_one_refused, "refusing the old token", 5)
        done[client.infer(IMAGE).plan.location] += 1
    assert set(done) == {"offload"}


def test_a_refused_call_may_be_repeated_once_a_channel_with_the_new_credential_is_there(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    with contextlib.closing(Connection(Endpoint("127.0.0.1:1", Credentials(token_file=token)), 1 << 20)) as connection:
        assert not connection.renew()
        token.write_text("second")
        assert connection.renew()
        assert connection.renew()  # as another thread asks, whose call was refused with the first token


def test_an_exchanged_credential_does_not_make_a_follower_call_its_server_lost() -> None:
    availability, lost, again = Availability(), threading.Event(), threading.Event()

    class Server:
        endpoint = "a test"

        def renew(self) -> bool:
            return True

        def list_models(self, _: float) -> dict[str, offload_pb2.ModelInfo]:
            return {}

        def watch_status(self) -> object:
            if again.is_set():
                raise UnavailableError("gone")
            again.set()
            raise AuthenticationError("the token is not known")

    follower = Follower(
        Server(),  # type: ignore[arg-type]
        availability,
        on_status=lambda _: None,
        on_models=lambda _: None,
        on_lost=lost.set,
    )
    follower.start()
    assert lost.wait(5)
    follower.close()
    follower.join()
    assert availability.why_not is not None
    assert "gone" in availability.why_not  # and not the token
    assert availability.refusal is None


@pytest.mark.parametrize("field", ["listen", "metrics_listen"])
def test_nothing_is_open_to_a_network_by_oversight(folder: Path, field: str) -> None:
    ours = folder / "ours"
    encrypted = {"tls_certificate": ours / "server.crt", "tls_key": ours / "server.key"}
    clients, ca = {"clients": ours / "clients.toml"}, {"tls_client_ca": ours / "ca.crt"}
    here = {"listen": "127.0.0.1:0"}
    for address in ("0.0.0.0:0", "[::]:0", "edge:50051", "192.0.2.1:1", "127.0.0.1.example.org:1"):
        opened = here | {field: address}
        for settings in ({}, encrypted, clients):
            with pytest.raises(SettingsError, match=f"{field}: {address.replace('[', '.').replace(']', '.')} is open"):
                load_settings(opened | settings)
        assert load_settings(opened | encrypted | ca)
        assert load_settings(opened | {"insecure": True})
    for address in ("127.0.0.1:0", "[::1]:0", "localhost:0"):
        assert load_settings(here | {field: address})


def test_what_is_open_on_purpose_is_warned_of_and_a_watcher_of_many_is_told_less(store: Path, tmp_path: Path) -> None:
    arguments = ("--insecure", "--metrics-listen", "0.0.0.0:0", "--status-period-seconds", "0.01", "--threads", "1")
    with (
        open(tmp_path / "log", "w+") as log,
        daemon("--store", str(store), *arguments, address="0.0.0.0", stderr=log.fileno()) as server,
        contextlib.ExitStack() as channels,
    ):
        target, own = f"127.0.0.1:{server.target.rpartition(':')[2]}", [OWN_CONNECTION]
        streams = []
        for number in range(200):
            if number % 25 == 0:
                to = channels.enter_context(grpc.insecure_channel(target, options=own))
                watch = to.unary_stream(PATHS["WatchStatus"])
            streams.append(watch(b"", metadata=((DEVICE_KEY, f"device-{number // 4}"),)))
        for stream in streams:
            next(stream)
        with pytest.raises(grpc.RpcError) as raised:
            next(watch(b"", metadata=((DEVICE_KEY, "device-1"),)))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "expected at most 4 status streams of this device, got 5" in raised.value.details()

        def seconds_until_next() -> float:
            started = time.monotonic()
            next(streams[0])
            return time.monotonic() - started

        eventually(lambda: seconds_until_next() > 0.15, "a status that comes a fifth of a second after the last", 5)
        for stream in streams:
            stream.cancel()
        log.seek(0)
        text = log.read()
    assert "is not encrypted" in text
    assert "asks nobody for a credential" in text
    assert "are in the clear and for everybody" in text


def test_a_connection_carries_a_bounded_number_of_calls_and_others_are_served_beside_it(store: Path) -> None:
    own = [OWN_CONNECTION]
    with (
        daemon("--store", str(store), "--threads", "1") as server,
        grpc.insecure_channel(server.target, options=own) as full,
        grpc.insecure_channel(server.target, options=own) as other,
    ):
        watch = full.unary_stream(PATHS["WatchStatus"])
        streams = [watch(b"", metadata=((DEVICE_KEY, f"device-{number}"),)) for number in range(32)]
        for stream in streams:
            next(stream)
        with pytest.raises(grpc.RpcError) as raised:
            full.unary_unary(PATHS["ListModels"])(b"", timeout=0.2)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert other.unary_unary(PATHS["ListModels"])(b"", timeout=5)
        streams[0].cancel()
        assert full.unary_unary(PATHS["ListModels"])(b"", timeout=5)


def test_a_request_that_no_tail_takes_is_refused_before_it_is_sent(store: Path) -> None:
    with daemon("--store", str(store), "--threads", "1") as server, grpc.insecure_channel(server.target) as channel:
        info, *_ = offload_pb2.ListModelsResponse.FromString(
            channel.unary_unary(PATHS["ListModels"])(b"", timeout=5)
        ).models
        ended = threading.Event()

        def messages() -> Iterator[bytes]:
            head = offload_pb2.InferRequest(model=info.name, digest=info.digest, codec="raw", total_bytes=100 << 20)
            yield head.SerializeToString()
            ended.wait(10)

        with pytest.raises(grpc.RpcError, match="total_bytes: expected at most") as raised:
            channel.stream_unary(PATHS["Infer"])(messages(), timeout=10)
        ended.set()
        assert (ERROR_KEY, "MESSAGE_TOO_LARGE") in raised.value.trailing_metadata()


def test_a_connection_with_many_refused_calls_is_slowed_and_no_other_one() -> None:
    clock = Clock()
    tarpit = Tarpit(5.0, clock)
    for _ in range(10):
        tarpit.refused("hostile")
    assert tarpit.wait_seconds("hostile") == pytest.approx(0.0)
    for _ in range(5):
        tarpit.refused("hostile")
    assert tarpit.wait_seconds("hostile") == pytest.approx(1.0)
    assert tarpit.wait_seconds("honest") == 0.0
    for _ in range(1000):
        tarpit.refused("hostile")
    assert tarpit.wait_seconds("hostile") == pytest.approx(5.0), "the longest wait"
    clock.now += 5.0
    assert tarpit.wait_seconds("hostile") == 0.0


def test_reads_are_ended_when_memory_runs_out_those_of_the_busiest_connection_first() -> None:
    memory = 1 << 30

    class Stalling:
        """A call whose message never comes."""

        def __init__(self, peer: str) -> None:
            self._peer = peer

        def peer(self) -> str:
            return self._peer

        async def read(self) -> bytes:
            await asyncio.sleep(3600)
            return b""

    async def test() -> None:
        nonlocal memory
        reads = PendingReads(1 << 20, lambda: memory)
        hostile = [asyncio.create_task(reads.read(Stalling("hostile"))) for _ in range(9)]  # type: ignore[arg-type]
        honest = asyncio.create_task(reads.read(Stalling("honest")))  # type: ignore[arg-type]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in hostile)
        memory += 1 << 30
        done, _ = await asyncio.wait(hostile, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        assert hostile[0] in done, "the oldest one"
        assert isinstance(hostile[0].exception(), QuotaError)
        await asyncio.wait(hostile[:8], timeout=5)
        memory -= 1 << 30
        assert not honest.done()
        for task in [honest, *hostile]:
            task.cancel()
        await asyncio.gather(honest, *hostile, return_exceptions=True)

    asyncio.run(test())


def test_what_cannot_be_written_to_somebody_who_leaves_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    class Leaving:
        def invocation_metadata(self) -> tuple[()]:
            return ()

        def time_remaining(self) -> None:
            return None

        def peer(self) -> str:
            return "ipv4:127.0.0.1:1"

        def done(self) -> bool:
            return False  # gRPC hears of it a moment later

        async def write(self, _: bytes) -> None:
            raise cygrpc.ExecuteBatchError("Failed")

    async def answers(_: Call) -> AsyncIterator[bytes]:
        yield b"answer"

    quota = Quota("calls", in_all=1, of_party=1, of_device=1)
    door = Door(Guard(None, asks_for_certificates=False), Metrics(), memory_bytes=1 << 20, refusals_per_second=50.0)
    handler = door.handler("service", {"Method": Entry(answers, Right.WATCH, quota)}, frozenset({"Method"}))
    details = SimpleNamespace(method="/service/Method", invocation_metadata=())
    asyncio.run(handler.service(details).stream_stream(None, Leaving()))  # type: ignore[arg-type, union-attr]
    assert not caplog.records
    assert quota.taken == 0


def test_whoever_leaves_in_the_middle_of_a_download_is_no_error(tmp_path: Path) -> None:
    write_store(tmp_path / "store", ["tiny"])
    write("large", tmp_path / "store", {**NETWORKS["tiny"], "padding": "x" * (8 << 20)})
    with (
        open(tmp_path / "log", "w+") as log,
        daemon("--store", str(tmp_path / "store"), "--threads", "1", stderr=log.fileno()) as server,
    ):
        request = http2.message(offload_pb2.GetModelRequest(model="large").SerializeToString())
        for number in range(8):
            with http2.connect(server.target, "127.0.0.1", window=4 << 20) as connection:
                block = http2.headers(PATHS["GetModel"], "-", f"device-{number}")
                connection.sendall(
                    http2.frame(http2.HEADERS, block, 1, http2.END_HEADERS)
                    + http2.frame(http2.DATA, request, 1, http2.END_STREAM)
                )
                connection.recv(1 << 16)
        with grpc.insecure_channel(server.target) as to:
            listed = to.unary_unary(PATHS["ListModels"])(b"", timeout=10)
        assert len(offload_pb2.ListModelsResponse.FromString(listed).models) == 2
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        log.seek(0)
        text = log.read()
    assert "Traceback" not in text
    assert "ERROR" not in text
