"""Every kind of credential at every kind of door: who gets in, and what the others are told.

The credentials are made by `loadpart-edge credentials`; what that does not make, such as a certificate that has
expired, is made by its parts. Each case is tried by a raw gRPC client and by the SDK.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import numpy as np
from rich.progress import track

from benchmarks.daemon import BIN, Daemon, daemon
from benchmarks.security import rotation
from benchmarks.security.honest import MODEL
from benchmarks.security.openings import openings
from benchmarks.security.report import Report, console
from loadpart.v1 import offload_pb2
from loadpart_common.errors import OffloadError
from loadpart_common.wire.credentials import Credentials
from loadpart_common.wire.endpoint import Endpoint
from loadpart_common.wire.methods import METHODS
from loadpart_device import OffloadClient
from loadpart_edge.access.authority import Issued, client_certificate, server_certificate
from loadpart_edge.access.folder import Folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

INFER, FETCH, WATCH = "infer", "fetch", "watch"
RIGHT_OF = {
    "Infer": INFER,
    "Probe": INFER,
    "GetModel": FETCH,
    "ListModels": WATCH,
    "WatchStatus": WATCH,
    "Check": WATCH,
    "Watch": WATCH,
}
REQUESTS = {"GetModel": offload_pb2.GetModelRequest(model=MODEL).SerializeToString()}
NOT_LET_IN = ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNAVAILABLE")
AUTHENTICATION, PERMISSION, HANDSHAKE = "AuthenticationError", "PermissionDeniedError", "handshake"

_STATUS = {AUTHENTICATION: "UNAUTHENTICATED", PERMISSION: "PERMISSION_DENIED", HANDSHAKE: "UNAVAILABLE"}
_WORDS = ("TLS", "certificate", "handshake", "SSL")


class Case(NamedTuple):
    """A credential at a door.

    Attributes:
        name: In words.
        credentials: What is shown.
        refusal: Why it is refused; empty when it is let in.
        says: A part of the message.
    """

    name: str
    credentials: Credentials
    refusal: str = ""
    says: str = ""


@dataclass
class Keys:
    """Where the credentials lie.

    Attributes:
        ours: Folder of the server's CA.
        foreign: Folder of another CA.
    """

    ours: Path
    foreign: Path

    def device(self, name: str, *, certificate: bool = True, token: bool = True, foreign: bool = False) -> Credentials:
        """The credentials of a client."""
        folder = (self.foreign if foreign else self.ours) / "devices" / name
        return Credentials(
            self.ours / "ca.crt",
            folder / "client.crt" if certificate else None,
            folder / "client.key" if certificate else None,
            token_file=folder / "token" if token else None,
        )


def credentials(*arguments: object) -> None:
    """Runs `loadpart-edge credentials`."""
    subprocess.run([BIN / "loadpart-edge", "credentials", *map(str, arguments)], check=True, capture_output=True)


def make_keys(folder: Path) -> Keys:
    """All credentials, right ones and wrong ones."""
    keys = Keys(folder / "ours", folder / "foreign")
    for each in (keys.ours, keys.foreign):
        credentials("init", "--folder", each)
        credentials("add", "full", "--folder", each)
    for right in (INFER, FETCH, WATCH):
        credentials("add", f"{right}-only", "--right", right, "--folder", keys.ours)
    for name in ("revoked", "expired", "rotating"):
        credentials("add", name, "--folder", keys.ours)
    credentials("revoke", "revoked", "--folder", keys.ours)
    ours = Folder(keys.ours)
    entries = ours.read_clients().entries
    past = datetime.now(UTC) - timedelta(days=1)
    changed = [replace(client, expires=past) if client.name == "expired" else client for client in entries]
    ours.write_clients(replace(ours.read_clients(), entries=tuple(changed)))
    authority = Issued(ours.ca_certificate.read_bytes(), ours.ca_key.read_bytes())
    for name, issued in (
        ("old", client_certificate(authority, "full", 0)),
        ("unregistered", client_certificate(authority, "full", 10)),
        ("posing", server_certificate(authority, [])),
        ("old-server", server_certificate(authority, [], 0)),
    ):
        (folder / f"{name}.crt").write_bytes(issued.certificate)
        (folder / f"{name}.key").write_bytes(issued.key)
    return keys


def cases_of(door: str, keys: Keys, folder: Path) -> list[Case]:
    """The cases at a door: "tls", "tokens", "mutual" or "both"."""
    ca, full = keys.ours / "ca.crt", keys.ours / "devices" / "full"
    has_mutual, has_clients = door in {"mutual", "both"}, door in {"tokens", "both"}
    base = Credentials(ca, full / "client.crt", full / "client.key") if has_mutual else Credentials(ca)
    cases = [
        Case("right", keys.device("full", certificate=has_mutual, token=has_clients)),
        Case("another CA trusted", replace(base, ca=keys.foreign / "ca.crt"), HANDSHAKE),
        Case("another name expected", replace(base, server_name="evil.example.org"), HANDSHAKE),
        Case("in the clear", Credentials(), HANDSHAKE, "?"),
    ]
    if has_mutual:
        cases += [
            Case("no certificate", Credentials(ca), HANDSHAKE),
            Case("certificate of another CA", keys.device("full", token=False, foreign=True), HANDSHAKE),
            Case("expired certificate", Credentials(ca, folder / "old.crt", folder / "old.key"), HANDSHAKE),
            Case("a server's certificate", Credentials(ca, folder / "posing.crt", folder / "posing.key"), HANDSHAKE),
        ]
    if has_clients:
        wrong = AUTHENTICATION
        cases += [
            Case("wrong token", replace(base, token="wrong"), wrong, "the token is not known"),
            Case("empty token", replace(base, token="-"), wrong, "the token is not known"),
            Case(
                "token of another server",
                replace(base, token_file=keys.foreign / "devices" / "full" / "token"),
                wrong,
                "the token is not known",
            ),
            Case("revoked", keys.device("revoked", certificate=has_mutual), wrong, "'revoked' was revoked"),
            Case("expired", keys.device("expired", certificate=has_mutual), wrong, "'expired' expired on"),
        ]
        cases += [
            Case(f"{right} only", keys.device(f"{right}-only", certificate=has_mutual), PERMISSION, "lacks the right")
            for right in (INFER, FETCH, WATCH)
        ]
    if door == "tokens":
        cases.append(Case("no token", Credentials(ca), AUTHENTICATION, "expected a token"))
    if door == "both":
        unregistered = Credentials(ca, folder / "unregistered.crt", folder / "unregistered.key")
        cases += [
            Case("certificate alone", keys.device("full", token=False)),
            Case("certificate of nobody", unregistered, AUTHENTICATION, "the certificate is not known"),
            Case("revoked certificate", keys.device("revoked", token=False), AUTHENTICATION, "'revoked' was revoked"),
            Case("expired client", keys.device("expired", token=False), AUTHENTICATION, "'expired' expired on"),
        ]
    return cases


def call(target: str, shown: Credentials) -> dict[str, tuple[str, str]]:
    """Status and message of every method, health among them, without the SDK."""
    found: dict[str, tuple[str, str]] = {}
    options = (("grpc.ssl_target_name_override", shown.server_name),) if shown.server_name else ()
    secure = shown.channel_credentials()
    with grpc.insecure_channel(target) if secure is None else grpc.secure_channel(target, secure, options) as channel:
        paths = {name: method.path for name, method in METHODS.items()}
        paths |= {name: f"/grpc.health.v1.Health/{name}" for name in ("Check", "Watch")}
        for name, path in paths.items():
            method: Any = channel.unary_stream(path)
            stream = method(REQUESTS.get(name, b""), metadata=shown.metadata(), timeout=10)
            try:
                next(iter(stream))
                found[name] = ("OK", "")
            except grpc.RpcError as error:
                found[name] = (error.code().name, error.details() or "")
            stream.cancel()
    return found


def infer(target: str, shown: Credentials, cache: str) -> str:
    """What an application hears that uses the SDK; where it computed when it hears nothing."""
    try:
        endpoint = Endpoint(target, shown)
        with OffloadClient(
            endpoint, MODEL, policy="offload", cache=cache, threads=1, connect_timeout=1.0, hedge=False
        ) as client:
            plan = client.infer(np.zeros(client.graph.inputs[0].concrete(1), np.uint8)).plan
            return plan.location if plan.location == "offload" else f"{plan.location}: {plan.reason}"
    except OffloadError as error:
        return f"{type(error).__name__}: {error}"


def judge(case: Case, called: dict[str, tuple[str, str]], heard: str) -> str:
    """What is wrong with a case; empty when nothing is."""
    problems = []
    for name, (status, message) in called.items():
        is_let_in = RIGHT_OF[name] == case.name.split()[0] if case.refusal == PERMISSION else not case.refusal
        if is_let_in and status in NOT_LET_IN:
            problems.append(f"{name} refused: {status} {message}")
        if not is_let_in and status != _STATUS[case.refusal]:
            problems.append(f"{name}: {status} {message}")
        if not is_let_in and case.says not in {"", "?"} and case.says not in message:
            problems.append(f"{name} says {message!r}")
    if not case.refusal and heard != "offload":
        problems.append(f"SDK: {heard}")
    if case.refusal == HANDSHAKE and not (heard.startswith("local") and any(word in heard for word in _WORDS)):
        problems.append(f"SDK: {heard}")
    if case.refusal in {AUTHENTICATION, PERMISSION} and not (heard.startswith(case.refusal) and case.says in heard):
        problems.append(f"SDK: {heard}")
    return "; ".join(problems)


@contextlib.contextmanager
def doors(store: str, keys: Keys) -> Iterator[dict[str, Daemon]]:
    """A daemon behind each kind of door."""
    tls = ("--tls-certificate", f"{keys.ours}/server.crt", "--tls-key", f"{keys.ours}/server.key")
    mutual, clients = ("--tls-client-ca", f"{keys.ours}/ca.crt"), ("--clients", f"{keys.ours}/clients.toml")
    kinds = {"tls": tls, "tokens": (*tls, *clients), "mutual": (*tls, *mutual), "both": (*tls, *mutual, *clients)}
    with contextlib.ExitStack() as stack:
        yield {
            kind: stack.enter_context(
                daemon("--store", store, "--models", MODEL, "--threads", "1", *arguments, stderr=subprocess.DEVNULL)
            )
            for kind, arguments in kinds.items()
        }


def run(report: Report, store: str, *, quick: bool) -> None:
    """Tries every credential at every door, then rotates credentials under load, then looks at what may be open."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = make_keys(folder)
        with doors(store, keys) as running:
            matrix(report, running, keys, folder)
            _versions(report, running["both"], keys)
            rotation.run(report, running["both"], keys.ours, str(folder / "cache"), quick=quick)
        openings(report, store, keys.ours)


def matrix(report: Report, running: dict[str, Daemon], keys: Keys, folder: Path) -> None:
    table = report.table(
        "credentials", "door", "credential", "let in", "methods that answered", "the application hears", "wrong"
    )
    cache = str(folder / "cache")
    cases = [(door, case) for door in running for case in cases_of(door, keys, folder)]
    assert infer(running["tls"].target, Credentials(keys.ours / "ca.crt"), cache) == "offload"  # fills the cache
    for door, case in track(cases, description="credentials", console=console, transient=True):
        called = call(running[door].target, case.credentials)
        heard = infer(running[door].target, case.credentials, cache)
        wrong = judge(case, called, heard)
        let_in = "a part" if case.refusal == PERMISSION else "no" if case.refusal else "yes"
        answered = sum(status not in NOT_LET_IN for status, _ in called.values())
        report.add(table, not wrong, door, case.name, let_in, f"{answered} of {len(called)}", heard[:110], wrong)
    console.print(table)


def _versions(report: Report, server: Daemon, keys: Keys) -> None:
    """Which versions of TLS the server speaks, as OpenSSL finds."""
    table: Table = report.table("openssl s_client", "version", "expected", "found")
    pair = keys.ours / "devices" / "full"
    for version, is_spoken in (("tls1", False), ("tls1_1", False), ("tls1_2", True), ("tls1_3", True)):
        ended = subprocess.run(
            [
                *("openssl", "s_client", "-connect", server.target, f"-{version}", "-alpn", "h2", "-brief"),
                *("-CAfile", str(keys.ours / "ca.crt"), "-verify_return_error"),
                *("-cert", str(pair / "client.crt"), "-key", str(pair / "client.key")),
                *("-cipher", "DEFAULT:@SECLEVEL=0"),
            ],
            input=b"", capture_output=True, check=False, timeout=20,
        )  # fmt: skip
        text = (ended.stdout + ended.stderr).decode(errors="replace")
        found = "Verification: OK" in text and "CONNECTION ESTABLISHED" in text
        line = next((line for line in text.splitlines() if "rotocol version" in line or "error" in line), "")
        report.add(table, found == is_spoken, version, "spoken" if is_spoken else "refused", line.strip()[:90])
    console.print(table)
