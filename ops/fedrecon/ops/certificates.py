"""A certificate authority of one's own, and the certificates of services that it signs.

For development, for `fedrecon up`, and for deployments without an authority: a folder holds `authority.pem` and
`service.pem` with their private keys beside them (`.key`, readable by their owner alone).

Rules: the authority is made once and kept, since devices are told whom to trust; a service's certificate is made again
when it is missing, names other hosts, or runs out within a month. Keys are P-256: every TLS library has it. X.509 as
RFC 5280 has it, names of hosts as RFC 6125.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedrecon.ops.durable_files import make_folder, write_durably
from fedrecon.ops.mistakes import UserMistake

AUTHORITY_NAME = "fedrecon authority"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

_AUTHORITY_DAYS = 3650
_SERVICE_DAYS = 365
_RENEWED_DAYS = 30
_CLOCKS_APART = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where a folder's certificates lie.

    Attributes:
        authority: PEM of the authority: whom clients trust.
        certificate: PEM of the service's certificate.
        key: PEM of the service's private key.
    """

    authority: Path
    certificate: Path
    key: Path


def keep_certificates(folder: Path, names: Sequence[str], now: dt.datetime | None = None) -> CertificateFiles:
    """Return a folder's certificates, made now as far as they are missing or run out.

    Args:
        folder: Where they lie; it is made if need be.
        names: Hosts and addresses under which the services are reached; the first is the certificate's own name.
        now: The time, with its zone; the clock's by default.

    Raises:
        UserMistake: A file there is damaged.
        OSError: It cannot be written.
    """
    now = now or dt.datetime.now(dt.UTC)
    make_folder(folder)
    files = CertificateFiles(folder / "authority.pem", folder / "service.pem", folder / "service.key")
    authority_key = folder / "authority.key"
    if not files.authority.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        _write_key(authority_key, key)
        _write(files.authority, _sign_itself(key, now))
    if not _is_good(files, names, now):
        authority, signer = _read_certificate(files.authority), _read_key(authority_key)
        key = ec.generate_private_key(ec.SECP256R1())
        # The key first: who reads in between has a pair that does not fit, and keeps the one it has.
        _write_key(files.key, key)
        _write(files.certificate, _sign(authority, signer, key, names, now))
    return files


def belong_together(certificate: bytes, key: bytes) -> bool:
    """Whether a certificate chain and a private key, both PEM, are a pair."""
    try:
        public = x509.load_pem_x509_certificates(certificate)[0].public_key()
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError, IndexError):
        return False
    encoding = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return public.public_bytes(*encoding) == private.public_key().public_bytes(*encoding)


def names_in(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the hosts and addresses that a certificate is for, in its order."""
    try:
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(each.value) for each in alternatives)


def _is_good(files: CertificateFiles, names: Sequence[str], now: dt.datetime) -> bool:
    """Whether the service's certificate needs no replacement."""
    if not (files.certificate.exists() and files.key.exists()):
        return False
    if not belong_together(files.certificate.read_bytes(), files.key.read_bytes()):
        return False
    certificate, authority = _read_certificate(files.certificate), _read_certificate(files.authority)
    runs_out = certificate.not_valid_after_utc < now + dt.timedelta(days=_RENEWED_DAYS)
    return not runs_out and names_in(certificate) == tuple(names) and certificate.issuer == authority.subject


def _sign_itself(key: ec.EllipticCurvePrivateKey, now: dt.datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AUTHORITY_NAME)])
    return (
        _builder(name, name, key.public_key(), now, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _sign(
    authority: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    now: dt.datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]  # services call each other, too
    return (
        _builder(subject, authority.subject, key.public_key(), now, _SERVICE_DAYS)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_APART)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _write(path: Path, certificate: x509.Certificate) -> None:
    write_durably(path, [certificate.public_bytes(serialization.Encoding.PEM)])


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    before = os.umask(0o077)
    try:
        write_durably(path, [encoded])
    finally:
        os.umask(before)


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise _damaged(path) from error


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (FileNotFoundError, ValueError, TypeError) as error:
        raise _damaged(path) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _damaged(path)
    return key


def _damaged(path: Path) -> UserMistake:
    return UserMistake(
        f"{path} is missing or damaged: no certificate can be signed.",
        f"Restore it from a copy; or remove {path.parent}, and a new authority is made: tell it to all devices.",
    )
