"""A private certificate authority: makes certificates for a server and its clients, and keeps nothing."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from loadpart_common.errors import SettingsError
from loadpart_edge.access.client import check_name

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ModuleNotFoundError as missing:
    raise SettingsError(f"{missing.name} is missing: certificates need: pip install 'loadpart[server]'") from missing

if TYPE_CHECKING:
    from collections.abc import Sequence

CA_DAYS = 3650
SERVER_DAYS = 825
ALWAYS_NAMED = ("localhost", "127.0.0.1", "::1")
# Devices often have no battery for their clock: one that is a little slow must accept a new certificate.
_BACKDATED = timedelta(minutes=5)
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")
_MAX_HOST_LETTERS = 253


@dataclass(frozen=True)
class Issued:
    """A certificate and its key, both in PEM.

    Attributes:
        certificate: The certificate.
        key: Its private key, in PKCS 8, not encrypted.
    """

    certificate: bytes
    key: bytes

    @property
    def expires(self) -> datetime:
        """When the certificate ends."""
        return x509.load_pem_x509_certificate(self.certificate).not_valid_after_utc


def make_authority(days: int = CA_DAYS) -> Issued:
    """Makes an authority that can sign certificates of servers and clients, but no further authorities."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("LoADPart CA")
    builder = (
        _builder(name, key.public_key(), datetime.now(UTC) + timedelta(days=days))
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_authority=True), critical=True)
    )
    return _issued(builder.sign(key, hashes.SHA256()), key)


def server_certificate(authority: Issued, names: Sequence[str], days: int = SERVER_DAYS) -> Issued:
    """Makes a certificate for a server; it ends with the authority's at the latest.

    Args:
        authority: Who signs.
        names: Host names and IP addresses by which devices call the server; those of this machine come with them.
        days: How long it is valid.

    Raises:
        SettingsError: A name is not one, or the authority is damaged or has expired.
    """
    alternatives = x509.SubjectAlternativeName([_alternative(name) for name in dict.fromkeys([*names, *ALWAYS_NAMED])])
    return _leaf(authority, "LoADPart edge server", ExtendedKeyUsageOID.SERVER_AUTH, days, alternatives)


def client_certificate(authority: Issued, name: str, days: int) -> Issued:
    """Makes a certificate for a client; it ends with the authority's at the latest.

    Raises:
        SettingsError: The name is not that of a client, or the authority is damaged or has expired.
    """
    check_name(name)
    return _leaf(authority, name, ExtendedKeyUsageOID.CLIENT_AUTH, days)


def names_in(certificate: bytes) -> tuple[str, ...]:
    """Host names and IP addresses in a server's certificate in PEM.

    Raises:
        SettingsError: It is not a certificate.
    """
    try:
        extensions = x509.load_pem_x509_certificate(certificate).extensions
        alternatives = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise SettingsError(f"the server's certificate is damaged: {error}") from error
    hosts = alternatives.get_values_for_type(x509.DNSName)
    return (*hosts, *map(str, alternatives.get_values_for_type(x509.IPAddress)))


def _leaf(
    authority: Issued,
    name: str,
    purpose: x509.ObjectIdentifier,
    days: int,
    alternatives: x509.SubjectAlternativeName | None = None,
) -> Issued:
    issuer, issuer_key = _signer(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    end = min(datetime.now(UTC) + timedelta(days=days), issuer.not_valid_after_utc)
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(_name(name), key.public_key(), end)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
    )
    if alternatives is not None:
        builder = builder.add_extension(alternatives, critical=False)
    return _issued(builder.sign(issuer_key, hashes.SHA256()), key)


def _signer(authority: Issued) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The certificate and the key of an authority, checked."""
    try:
        certificate = x509.load_pem_x509_certificate(authority.certificate)
        key = serialization.load_pem_private_key(authority.key, password=None)
        certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise SettingsError(f"the CA is damaged: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise SettingsError("the CA is damaged: its key does not belong to its certificate")
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise SettingsError(f"the CA expired on {certificate.not_valid_after_utc:%Y-%m-%d}: a new one is needed")
    return certificate, key


def _builder(name: x509.Name, key: ec.EllipticCurvePublicKey, end: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - _BACKDATED)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _issued(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Issued:
    pem = serialization.Encoding.PEM
    return Issued(
        certificate.public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _alternative(name: str) -> x509.GeneralName:
    """A host name or an IP address as it stands in a certificate."""
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        # Four numbers that are no address would pass as a host name.
        if len(name) > _MAX_HOST_LETTERS or not _HOST.fullmatch(name) or name.rsplit(".", 1)[-1].isdigit():
            raise SettingsError(f"name: expected a host name or an IP address without a port, got {name!r}") from None
        return x509.DNSName(name)
