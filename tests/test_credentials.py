"""Who may use a server: the clients file, the private CA, and the commands that write both."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from loadpart_common.errors import AuthenticationError, PermissionDeniedError, SettingsError
from loadpart_common.files import write_atomically
from loadpart_edge.access import issuing
from loadpart_edge.access.authority import (
    ALWAYS_NAMED,
    Issued,
    client_certificate,
    make_authority,
    names_in,
    server_certificate,
)
from loadpart_edge.access.client import Client, Right, certificate_sha256, check, token_sha256
from loadpart_edge.access.clients import MAX_FILE_BYTES, Clients, ClientsFile
from loadpart_edge.access.folder import Folder, default_folder
from tests.support import Clock, run_here

if TYPE_CHECKING:
    from collections.abc import Iterator

A, B = "a" * 64, "b" * 64
NOON = datetime(2030, 1, 31, 12, tzinfo=UTC)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def table(name: str = "one", **fields: str) -> str:
    lines = {"rights": '["infer"]', "token_sha256": f'"{A}"'} | fields
    return f"[{name}]\n" + "".join(f"{field} = {value}\n" for field, value in lines.items() if value)


# The clients file.


def test_a_clients_file_is_read() -> None:
    text = f"""
        [camera-1]
        rights = ["watch", "infer"]
        token_sha256 = "{A.upper()}"
        certificate_sha256 = "{B}"
        expires = 2030-01-31T14:00:00+02:00
        revoked = true
        ["robot.2"]
        rights = ["fetch"]
        certificate_sha256 = "{A}"
    """
    first, second = Clients.parse(text, "text").entries
    assert first == Client("camera-1", frozenset({Right.INFER, Right.WATCH}), A, B, NOON, is_revoked=True)
    assert second == Client("robot.2", frozenset({Right.FETCH}), certificate_sha256=A)
    assert Clients.parse("", "text") == Clients()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[one", "clients.toml: Expected"),
        ("one = 3", "clients.toml: client 'one': expected a table, got 3"),
        (table("-one"), "clients.toml: client '-one': expected a name of at most 64 letters"),
        (table("o" * 65), "expected a name of at most 64 letters"),
        (table('"../one"'), "client '../one': expected a name"),
        (table('"one\\n"'), r"client 'one\\n': expected a name"),
        (table(colour="3"), "client 'one': unknown field 'colour': expected one of rights, token_sha256"),
        (table("one.two"), r"""client 'one': unknown field 'two'.*a name with a dot is written \["one.two"\]"""),
        (table(rights=""), "client 'one': rights: expected a list of one or more of infer, fetch, watch, got None"),
        (table(rights="[]"), "client 'one': rights: expected a list"),
        (table(rights='"infer"'), "client 'one': rights: expected a list .* got 'infer'"),
        (table(rights='["infer", "root"]'), "client 'one': rights: expected infer, fetch, watch, got 'root'"),
        (table(rights='[["infer"]]'), r"client 'one': rights: expected infer, fetch, watch, got \['infer'\]"),
        (table(token_sha256='"abc"'), "client 'one': token_sha256: expected 64 hexadecimal digits, got 'abc'"),
        (table(token_sha256="7"), "client 'one': token_sha256: expected 64 hexadecimal digits, got 7"),
        (table(token_sha256=f'"{token_sha256("")}"'), "client 'one': token_sha256: this is the hash of an empty token"),
        (table(certificate_sha256=f'"{"g" * 64}"'), "client 'one': certificate_sha256: expected 64 hexadecimal"),
        (table(token_sha256=""), "client 'one': expected a token_sha256, a certificate_sha256 or both"),
        (table(expires="2030-01-31T12:00:00"), "client 'one': expires: expected a time with a zone"),
        (table(expires="2030-01-31"), "client 'one': expires: expected a time with a zone"),
        (table(expires='"2030-01-31T12:00:00Z"'), "client 'one': expires: expected a time with a zone"),
        (table(expires="9999-12-31T23:00:00-02:00"), "client 'one': expires: .* outside the calendar"),
        (table(revoked="1"), "client 'one': revoked: expected true or false, got 1"),
        (table() + table(), "Cannot declare"),
        (table() + table("two"), "client 'two': token_sha256: client 'one' has the same"),
        (
            table("two", token_sha256="", certificate_sha256=f'"{B}"') + table(certificate_sha256=f'"{B.upper()}"'),
            "client 'two': certificate_sha256: client 'one' has the same",
        ),
        ("# " + "é" * (MAX_FILE_BYTES // 2), "clients.toml: expected at most 4 MiB"),
        ("one = " + "[" * 100_000, "clients.toml: nested too deeply"),
        ("one = " + "1" * 5000, "clients.toml: .*integer"),
    ],
)
def test_a_wrong_clients_file_is_refused_with_client_and_field(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Clients.parse(text, "clients.toml")


_HASHES = st.none() | st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def some_clients(draw: st.DrawFn) -> Clients:
    names = draw(st.sets(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True), max_size=5))
    zone = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])
    within = {"min_value": datetime(1, 1, 2), "max_value": datetime(9999, 12, 30)}
    entries = []
    for number, name in enumerate(sorted(names)):
        rights = draw(st.frozensets(st.sampled_from(list(Right)), min_size=1))
        # The first digits keep hashes apart, and one of the two is always there.
        token, certificate = (each and f"{number:02x}{each[2:]}" for each in (draw(_HASHES), draw(_HASHES)))
        expires = draw(st.none() | st.datetimes(timezones=zone, **within))
        entries.append(
            Client(name, rights, token or (None if certificate else A), certificate, expires, draw(st.booleans()))
        )
    return Clients(tuple({client.token_sha256 or client.name: client for client in entries}.values()))


@given(some_clients())
def test_what_is_written_is_read_again(clients: Clients) -> None:
    assert Clients.parse(clients.text(), "text") == clients


@given(
    st.text() | st.lists(st.sampled_from(["[", "]", "one", '"', "=", ".", "\n", "rights", "{", "}", "#"])).map("".join)
)
def test_whatever_a_file_holds_the_error_is_ours(text: str) -> None:
    with contextlib.suppress(SettingsError):
        Clients.parse(text, "text")


def test_clients_are_found_by_their_credentials() -> None:
    first = Client("one", frozenset(Right), token_sha256("secret"), A)
    second = Client("two", frozenset(Right), None, B)
    clients = Clients((second, first))
    assert clients.entries == (first, second)
    assert clients.by_token("secret") == first
    assert clients.by_certificate(B.upper()) == second
    assert clients.by_name("two") == second
    for wrong in ("", "Secret", "secret ", token_sha256("secret"), A, "\udfff", "0" * 64, "\0"):
        assert clients.by_token(wrong) is None
        assert Clients().by_token(wrong) is None
    assert clients.by_certificate("") is None
    assert clients.by_certificate(token_sha256("secret")) is None
    assert clients.by_name("three") is None


@pytest.mark.parametrize(
    ("client", "right", "error", "message"),
    [
        (None, Right.INFER, AuthenticationError, "the token is not known"),
        (Client("x", frozenset(Right), A, is_revoked=True), Right.INFER, AuthenticationError, "client 'x' was revoked"),
        (
            Client("x", frozenset(), A, expires=NOON),
            Right.INFER,
            AuthenticationError,
            "the credential of client 'x' expired on 2030-01-31 12:00 UTC",
        ),
        (
            Client("x", frozenset({Right.WATCH, Right.INFER}), A),
            Right.FETCH,
            PermissionDeniedError,
            "client 'x' lacks the right 'fetch': it has infer, watch",
        ),
    ],
)
def test_who_may_not_is_told_why(client: Client | None, right: Right, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        check(client, right, NOON.timestamp())
    assert str(raised.value) == message


def test_who_may_is_let_in_until_the_second_when_the_credential_ends() -> None:
    client = Client("x", frozenset({Right.WATCH}), A, expires=NOON)
    check(client, Right.WATCH, NOON.timestamp() - 0.001)
    with pytest.raises(AuthenticationError):
        check(client, Right.WATCH, NOON.timestamp())
    with pytest.raises(AuthenticationError, match="the certificate is not known"):
        check(None, Right.WATCH, 0.0, "certificate")


# The clients file while a server runs.


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A clients file with one client."""
    path = tmp_path / "clients.toml"
    write_atomically(path, table().encode(), 0o600)
    return path


def names(clients: Clients) -> list[str]:
    return [client.name for client in clients.entries]


def test_a_change_is_noticed_after_half_a_second(path: Path) -> None:
    clock = Clock()
    file = ClientsFile(path, clock)
    before = file.current()
    write_atomically(path, table("two").encode(), 0o600)
    clock.now += 0.49
    assert file.current() is before
    clock.now += 0.02
    assert names(file.current()) == ["two"]
    again = file.current()
    clock.now += 10
    assert file.current() is again
    write_atomically(path, table("three").encode(), 0o600)
    clock.now -= 1000
    assert names(file.current()) == ["three"]


def test_a_damaged_file_leaves_the_last_one_in_force_and_is_logged_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    file = ClientsFile(path, clock)

    def later() -> list[str]:
        clock.now += 1
        return names(file.current())

    def errors() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]

    path.write_text("[one")
    assert [later(), later()] == [["one"], ["one"]]
    assert len(errors()) == 1
    assert "the clients read before stay in force" in errors()[0]
    path.unlink()
    assert [later(), later()] == [["one"], ["one"]]
    assert len(errors()) == 2
    assert "No such file" in errors()[1]
    write_atomically(path, table("two").encode(), 0o600)
    assert later() == ["two"]
    write_atomically(path, table("three").encode(), 0o600)
    path.chmod(0o620)
    assert [later(), later()] == [["two"], ["two"]]
    assert "0620" in errors()[2]
    path.chmod(0o600)  # changes neither content nor time of change
    assert later() == ["three"]
    assert len(errors()) == 3


def test_a_file_that_cannot_be_read_for_a_while_is_tried_again(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    file = ClientsFile(path, clock)
    write_atomically(path, table("two").encode(), 0o600)

    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fail)
        for _ in range(3):
            clock.now += 1
            assert names(file.current()) == ["one"]
    assert caplog.text.count("too many open files") == 1
    clock.now += 1
    assert names(file.current()) == ["two"]


def test_a_file_that_others_may_write_to_is_refused(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for wrong in (0o620, 0o602):
        path.chmod(wrong)
        with pytest.raises(SettingsError, match=f"clients.toml has mode {wrong:04o}.*chmod go-w"):
            ClientsFile(path)
    assert not caplog.records
    path.chmod(0o600)
    ClientsFile(path)
    assert not caplog.records
    path.chmod(0o644)
    ClientsFile(path)
    assert "can be read by others" in caplog.text


def test_what_is_no_clients_file_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="nothing: No such file"):
        ClientsFile(tmp_path / "nothing")
    with pytest.raises(SettingsError, match="Is a directory"):
        ClientsFile(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(SettingsError, match="pipe is no file"):
        ClientsFile(tmp_path / "pipe")
    path.write_bytes(b"# \xff")
    with pytest.raises(SettingsError, match=r"clients\.toml: .*codec can't decode"):
        ClientsFile(path)
    path.write_bytes(b" " * (MAX_FILE_BYTES + 1))
    with pytest.raises(SettingsError, match="expected at most 4 MiB"):
        ClientsFile(path)


# The private CA.


@pytest.fixture(scope="module")
def authority() -> Issued:
    """A CA."""
    return make_authority()


def days_left(issued: Issued) -> float:
    return (issued.expires - datetime.now(UTC)).total_seconds() / 86400


def test_the_authority_may_sign_certificates_and_nothing_else(authority: Issued) -> None:
    certificate = x509.load_pem_x509_certificate(authority.certificate)
    limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert limits.critical
    assert (limits.value.ca, limits.value.path_length) == (True, 0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)
    assert days_left(authority) == pytest.approx(3650, abs=0.01)
    assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=4)
    assert authority.key.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_a_server_certificate_has_all_its_names(authority: Issued) -> None:
    server = server_certificate(authority, ["edge.example.org", "10.0.0.1", "fe80::1", "edge_1", "localhost"])
    named = names_in(server.certificate)
    assert sorted(named) == sorted({"edge.example.org", "10.0.0.1", "fe80::1", "edge_1", *ALWAYS_NAMED})
    assert days_left(server) == pytest.approx(825, abs=0.01)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "edge:50051",
        "http://edge",
        "10.0.0",
        "10.0.0.1.",
        "-edge",
        "ä.de",
        "a..b",
        "x" * 64,
        "a\n",
        ".".join(["a"] * 200),
    ],
)
def test_what_is_no_host_is_refused(authority: Issued, name: str) -> None:
    with pytest.raises(SettingsError, match="name: expected a host name or an IP address without a port"):
        server_certificate(authority, [name])


def test_a_client_certificate_bears_its_name_and_ends_with_the_authority(authority: Issued) -> None:
    issued = client_certificate(authority, "camera-1", days=7)
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    assert certificate.subject.rfc4514_string() == "CN=camera-1"
    assert days_left(issued) == pytest.approx(7, abs=0.01)
    assert certificate_sha256(issued.certificate.decode()) == certificate.fingerprint(hashes.SHA256()).hex()
    assert client_certificate(authority, "camera-1", days=9999).expires == authority.expires
    with pytest.raises(SettingsError, match=r"client '\.\.': expected a name"):
        client_certificate(authority, "..", days=7)


def test_a_damaged_or_old_authority_signs_nothing(authority: Issued) -> None:
    other = make_authority()
    with pytest.raises(SettingsError, match="its key does not belong to its certificate"):
        client_certificate(Issued(authority.certificate, other.key), "x", 1)
    with pytest.raises(SettingsError, match="the CA is damaged"):
        client_certificate(Issued(authority.certificate, authority.key[:100]), "x", 1)
    with pytest.raises(SettingsError, match="the CA is damaged"):
        client_certificate(Issued(b"", authority.key), "x", 1)
    with pytest.raises(SettingsError, match="the CA expired on"):
        client_certificate(make_authority(days=0), "x", 1)
    with pytest.raises(SettingsError, match="the server's certificate is damaged"):
        names_in(b"")
    with pytest.raises(SettingsError, match="the server's certificate is damaged"):
        names_in(authority.certificate)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_accepts_the_chain_for_its_purpose_only(authority: Issued, tmp_path: Path) -> None:
    made = {
        "ca": authority,
        "other": make_authority(),
        "sslserver": server_certificate(authority, ["edge.example.org"]),
        "sslclient": client_certificate(authority, "camera-1", 7),
    }
    for name, issued in made.items():
        (tmp_path / name).write_bytes(issued.certificate)

    def is_accepted(name: str, purpose: str, ca: str = "ca", *arguments: str) -> bool:
        command = ["openssl", "verify", "-x509_strict", "-CAfile", ca, "-purpose", purpose, *arguments, name]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, timeout=30).returncode == 0

    for name in ("sslserver", "sslclient"):
        for purpose in ("sslserver", "sslclient"):
            assert is_accepted(name, purpose) is (name == purpose)
        assert not is_accepted(name, name, "other")
    assert is_accepted("sslserver", "sslserver", "ca", "-verify_hostname", "edge.example.org")
    assert is_accepted("sslserver", "sslserver", "ca", "-verify_ip", "127.0.0.1")
    assert not is_accepted("sslserver", "sslserver", "ca", "-verify_hostname", "evil.example.org")
    # A client that signs for others is refused.
    (tmp_path / "signed").write_bytes(_signed_by_a_client(made["sslclient"]))
    (tmp_path / "sslclient").write_bytes(made["sslclient"].certificate)
    assert not is_accepted("signed", "sslclient", "ca", "-untrusted", "sslclient")


def _signed_by_a_client(client: Issued) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    key = load_pem_private_key(client.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = x509.load_pem_x509_certificate(client.certificate)
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(certificate.subject)
    builder = builder.public_key(key.public_key()).serial_number(1)
    builder = builder.not_valid_before(datetime.now(UTC)).not_valid_after(certificate.not_valid_after_utc)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


# Both ends of a connection.


class Listening:
    """A gRPC server in this process that says which certificate the caller showed."""

    def __init__(self, server: Issued, ca: bytes) -> None:
        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            return certificate_sha256(context.auth_context()["x509_pem_cert"][0].decode()).encode()

        handler = grpc.method_handlers_generic_handler("t", {"Who": grpc.unary_unary_rpc_method_handler(answer)})
        self.server = grpc.server(ThreadPoolExecutor(1), handlers=[handler])
        pairs = [(server.key, server.certificate)]
        self.port = self.server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials(pairs, root_certificates=ca, require_client_auth=True)
        )
        self.server.start()

    def who(self, ca: bytes, client: Issued | None = None, host: str = "localhost") -> str:
        """The hash of the certificate that the server saw; raises when the two do not accept each other."""
        key, chain = (client.key, client.certificate) if client else (None, None)
        options = [("grpc.ssl_target_name_override", host)]
        with grpc.secure_channel(
            f"127.0.0.1:{self.port}", grpc.ssl_channel_credentials(ca, key, chain), options
        ) as channel:
            return bytes(channel.unary_unary("/t/Who")(b"", timeout=10)).decode()


@pytest.fixture(scope="module")
def listening(authority: Issued) -> Iterator[Listening]:
    """A server that asks for certificates."""
    listening = Listening(server_certificate(authority, ["edge.example.org"]), authority.certificate)
    yield listening
    listening.server.stop(None).wait()


def test_server_and_client_know_each_other_by_their_certificates(authority: Issued, listening: Listening) -> None:
    issued = client_certificate(authority, "camera-1", 7)
    seen = [listening.who(authority.certificate, issued, host) for host in ("edge.example.org", "127.0.0.1")]
    assert seen == [certificate_sha256(issued.certificate.decode())] * 2
    client = Client("camera-1", frozenset(Right), None, seen[0])
    assert Clients((client,)).by_certificate(seen[0]) == client


def test_strangers_are_refused_on_either_side(authority: Issued, listening: Listening) -> None:
    other = make_authority()
    right = client_certificate(authority, "camera-1", 7)
    refused = [
        (authority.certificate, None, "localhost"),
        (authority.certificate, client_certificate(other, "camera-1", 7), "localhost"),
        (authority.certificate, server_certificate(authority, []), "localhost"),
        (authority.certificate, right, "evil.example.org"),
        (other.certificate, right, "localhost"),
    ]
    for ca, client, host in refused:
        with pytest.raises(grpc.RpcError) as raised:
            listening.who(ca, client, host)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_client_cannot_pose_as_the_server(authority: Issued) -> None:
    posing = Listening(client_certificate(authority, "localhost", 7), authority.certificate)
    try:
        with pytest.raises(grpc.RpcError):
            posing.who(authority.certificate, client_certificate(authority, "camera-1", 7))
    finally:
        posing.server.stop(None).wait()


# The commands.


def credentials(command: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_here("loadpart-edge", "credentials", command, "--folder", str(folder), *arguments)


def done(command: str, folder: Path, *arguments: str) -> str:
    ended = credentials(command, folder, *arguments)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


def refused(command: str, folder: Path, *arguments: str) -> str:
    ended = credentials(command, folder, *arguments)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    return ended.stderr


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `init` makes it."""
    folder = tmp_path_factory.mktemp("prepared") / "credentials"
    issuing.initialise(Folder(folder), ["edge.example.org"])
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A folder of a test's own, as `init` makes it."""
    return shutil.copytree(prepared, tmp_path / "credentials")


def clients(folder: Path) -> Clients:
    return Clients.read(folder / "clients.toml")


def test_init_makes_everything_that_a_server_needs(tmp_path: Path) -> None:
    folder = tmp_path / "etc" / "credentials"
    umask = os.umask(0)
    try:
        out = done("init", folder, "--name", "edge.example.org", "--name", "10.0.0.1")
    finally:
        os.umask(umask)
    assert mode(folder) == 0o700
    assert {each.name: mode(each) for each in folder.iterdir()} == {
        ".lock": 0o600,
        "ca.crt": 0o644,
        "ca.key": 0o600,
        "server.crt": 0o644,
        "server.key": 0o600,
        "clients.toml": 0o600,
    }
    assert names_in((folder / "server.crt").read_bytes())[0] == "edge.example.org"
    assert "10.0.0.1" in out
    for line in (
        f'tls_certificate = "{folder}/server.crt"',
        f'tls_key = "{folder}/server.key"',
        f'tls_client_ca = "{folder}/ca.crt"',
        f'clients = "{folder}/clients.toml"',
    ):
        assert line in out.splitlines()
    assert clients(folder) == Clients()
    assert "no clients in" in done("list", folder)


def test_init_never_replaces_a_ca(folder: Path) -> None:
    done("add", folder, "camera-1")
    before = {each: each.read_bytes() for each in folder.iterdir() if each.is_file()}
    assert "'--renew-server' makes a new server certificate only" in refused("init", folder)
    (folder / "ca.crt").rename(folder / "away")
    assert "there is a CA in" in refused("init", folder)
    (folder / "away").rename(folder / "ca.crt")
    assert {each: each.read_bytes() for each in before} == before
    assert "edge.example.org" in done("init", folder, "--renew-server")
    changed = {each.name for each, data in before.items() if each.read_bytes() != data}
    assert changed == {"server.crt", "server.key"}
    assert mode(folder / "server.key") == 0o600
    assert "edge.example.org" in names_in((folder / "server.crt").read_bytes())
    done("init", folder, "--renew-server", "--name", "new.example.org")
    assert set(names_in((folder / "server.crt").read_bytes())) == {"new.example.org", *ALWAYS_NAMED}


def test_init_says_what_is_wrong(tmp_path: Path, folder: Path) -> None:
    assert "no CA in" in refused("init", tmp_path / "new", "--renew-server")
    assert "got 'edge:1'" in refused("init", tmp_path / "new", "--name", "edge:1")
    assert not (tmp_path / "new" / "ca.key").exists()
    (tmp_path / "file").touch()
    assert "file/new: Not a directory" in refused("init", tmp_path / "file" / "new")
    folder.chmod(0o770)
    assert "has mode 0770: others could exchange what is in it" in refused("init", folder, "--renew-server")


def test_add_makes_what_a_device_needs(folder: Path) -> None:
    umask = os.umask(0)
    try:
        out = done("add", folder, "camera-1", "--right", "infer", "--right", "watch", "--days", "7")
    finally:
        os.umask(umask)
    device = folder / "devices" / "camera-1"
    assert mode(folder / "devices") == mode(device) == 0o700
    assert {each.name: mode(each) for each in device.iterdir()} == {
        "ca.crt": 0o644,
        "client.crt": 0o644,
        "client.key": 0o600,
        "token": 0o600,
    }
    for setting, file in (
        ("ca", "ca.crt"),
        ("certificate", "client.crt"),
        ("key", "client.key"),
        ("token_file", "token"),
    ):
        assert f'{setting} = "{device}/{file}"' in out.splitlines()
    assert (device / "ca.crt").read_bytes() == (folder / "ca.crt").read_bytes()
    token = (device / "token").read_text().strip()
    assert len(token) >= 43
    assert token not in out
    assert token not in (folder / "clients.toml").read_text()
    assert mode(folder / "clients.toml") == 0o600
    (client,) = clients(folder).entries
    assert clients(folder).by_token(token) == client
    assert clients(folder).by_certificate(certificate_sha256((device / "client.crt").read_text())) == client
    assert client.rights == {Right.INFER, Right.WATCH}
    assert client.expires == Issued((device / "client.crt").read_bytes(), b"").expires
    assert (client.expires - datetime.now(UTC)).days == 6
    x509.load_pem_x509_certificate((device / "client.crt").read_bytes()).verify_directly_issued_by(
        x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    )


def test_add_makes_only_what_is_wanted(folder: Path, tmp_path: Path) -> None:
    out = done("add", folder, "token-only", "--no-certificate", "--output", str(tmp_path / "out"), "--print-token")
    device = tmp_path / "out" / "token-only"
    assert sorted(each.name for each in device.iterdir()) == ["ca.crt", "token"]
    assert f"token: {(device / 'token').read_text()}" in out
    assert "client.key" not in out
    done("add", folder, "certificate-only", "--no-token", "--output", str(tmp_path / "out"))
    assert not (tmp_path / "out" / "certificate-only" / "token").exists()
    first, second = clients(folder).entries
    assert (first.name, first.token_sha256, first.rights) == ("certificate-only", None, set(Right))
    assert (second.name, second.certificate_sha256) == ("token-only", None)
    message = refused("add", folder, "nothing", "--no-token", "--no-certificate")
    assert "client 'nothing': expected a token, a certificate or both" in message


def test_add_says_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    done("add", folder, "camera-1", "--no-certificate")
    before = (folder / "clients.toml").read_bytes()
    assert "client 'camera-1' is there already: '--replace' gives" in refused("add", folder, "camera-1")
    assert "client '../x': expected a name" in refused("add", folder, "../x")
    assert "no folder" in refused("add", tmp_path / "nowhere", "x")
    (tmp_path / "file").touch()
    assert "file: File exists" in refused("add", folder, "x", "--output", str(tmp_path / "file"))
    (folder / "ca.key").write_bytes(make_authority().key)
    assert "its key does not belong to its certificate" in refused("add", folder, "x")
    (folder / "ca.key").unlink()
    assert "no CA in" in refused("add", folder, "x")
    assert (folder / "clients.toml").read_bytes() == before
    (folder / "clients.toml").write_text("[one")
    assert "clients.toml: Expected" in refused("add", folder, "x")
    (folder / "clients.toml").unlink()
    assert "clients.toml: 'loadpart-edge credentials init' makes one" in refused("add", folder, "x")


def test_replacing_a_client_ends_its_old_credentials_and_keeps_its_rights(folder: Path) -> None:
    done("add", folder, "camera-1", "--right", "infer")
    done("add", folder, "camera-2")
    (old, other), token = clients(folder).entries, (folder / "devices" / "camera-1" / "token").read_text().strip()
    done("revoke", folder, "camera-1")
    done("add", folder, "camera-1", "--replace")
    new = clients(folder).by_name("camera-1")
    assert new is not None
    assert new.rights == old.rights
    assert not new.is_revoked
    assert new.token_sha256 != old.token_sha256
    assert new.certificate_sha256 != old.certificate_sha256
    assert clients(folder).by_token(token) is None
    assert clients(folder).by_name("camera-2") == other
    done("add", folder, "camera-1", "--replace", "--no-certificate", "--right", "watch")
    assert sorted(each.name for each in (folder / "devices" / "camera-1").iterdir()) == ["ca.crt", "token"]
    done("add", folder, "camera-1", "--replace")
    last = clients(folder).by_name("camera-1")
    assert last is not None
    assert (last.rights, last.certificate_sha256) == ({Right.WATCH}, None)


def test_revoking_shuts_out_and_keeps_the_entry(folder: Path) -> None:
    done("add", folder, "camera-1", "--no-certificate")
    done("add", folder, "camera-2", "--no-certificate")
    first, second = clients(folder).entries
    clock = Clock()
    file = ClientsFile(folder / "clients.toml", clock)
    assert "Client 'camera-1' was revoked;" in done("revoke", folder, "camera-1")
    clock.now += 1
    revoked, other = file.current().entries
    assert other == second
    with pytest.raises(AuthenticationError, match="client 'camera-1' was revoked"):
        check(revoked, Right.INFER, 0.0)
    assert revoked.token_sha256 == first.token_sha256
    before = (folder / "clients.toml").stat().st_mtime_ns
    assert "Client 'camera-1' was revoked before" in done("revoke", folder, "camera-1")
    assert (folder / "clients.toml").stat().st_mtime_ns == before
    assert "no client 'camera-3'" in refused("revoke", folder, "camera-3")
    assert "expected one of: camera-1, camera-2" in refused("revoke", folder, "camera-3")


def test_clients_are_listed_with_their_state(folder: Path) -> None:
    done("add", folder, "camera-1", "--no-certificate", "--right", "infer")
    done("add", folder, "camera-2", "--no-token")
    done("revoke", folder, "camera-2")
    old = Client("camera-3", frozenset(Right), B, expires=datetime(2020, 1, 31, tzinfo=UTC))
    ever = Client("camera-4", frozenset(Right), A)
    Folder(folder).write_clients(Clients((*clients(folder).entries, old, ever)))
    rows = [line.split() for line in done("list", folder).splitlines()[1:]]
    assert [(row[0], row[-1]) for row in rows] == [
        ("camera-1", "valid"), ("camera-2", "revoked"), ("camera-3", "expired"), ("camera-4", "valid"),
    ]  # fmt: skip
    assert rows[0][1:4] == ["infer", "yes", "no"]
    assert rows[1][4:6] == ["no", "yes"]
    assert rows[2][-2] == "2020-01-31"
    assert rows[3][-2] == "never"


def test_clients_that_are_added_at_once_are_all_there(folder: Path) -> None:
    expected = [f"camera-{number:02}" for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: issuing.add(Folder(folder), name, has_certificate=False), expected))
    assert names(clients(folder)) == expected


def test_more_clients_than_a_server_would_read_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("add", folder, "camera-1", "--no-certificate")
    before = (folder / "clients.toml").read_bytes()
    monkeypatch.setattr("loadpart_edge.access.clients.MAX_FILE_BYTES", len(before) + 10)
    assert "expected at most" in refused("add", folder, "camera-2", "--no-certificate")
    assert (folder / "clients.toml").read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_root_writes_stays_readable_for_the_daemon(folder: Path) -> None:
    for name in ("clients.toml", "server.key"):
        os.chown(folder / name, 12345, 23456)
    (folder / "clients.toml").chmod(0o640)
    done("add", folder, "camera-1")
    done("init", folder, "--renew-server")
    for name in ("clients.toml", "server.key"):
        status = (folder / name).stat()
        assert (status.st_uid, status.st_gid) == (12345, 23456)
    assert mode(folder / "clients.toml") == 0o640
    # A key that was put where a device's would be written does not give its owner that device's.
    planted = folder / "devices" / "camera-1" / "client.key"
    os.chown(planted, 12345, 23456)
    done("add", folder, "camera-1", "--replace")
    assert planted.stat().st_uid == 0


def test_without_cryptography_tokens_can_still_be_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.delitem(sys.modules, "loadpart_edge.access.authority")
    message = "cryptography is missing: certificates need: pip install 'loadpart[server]'"
    assert message in refused("add", folder, "camera-1")
    done("add", folder, "camera-1", "--no-certificate")


def test_the_default_folder_is_that_of_the_machine_for_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    system = tmp_path / "etc" / "credentials"
    monkeypatch.setattr("loadpart_edge.access.folder._SYSTEM_FOLDER", system)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/config")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_folder() == system
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert default_folder() == Path("/config/loadpart/credentials")
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    assert default_folder() == Path.home() / ".config" / "loadpart" / "credentials"
    assert Folder(Path("here")).path == Path.cwd() / "here"


def test_help_teaches() -> None:
    ended = run_here("loadpart-edge", "credentials", "--help")
    assert ended.returncode == 0
    for command in ("init", "add", "revoke", "list"):
        assert command in ended.stdout
    assert "--replace" in run_here("loadpart-edge", "credentials", "add", "--help").stdout
