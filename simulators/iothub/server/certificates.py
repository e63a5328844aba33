"""The hub's own certificate authority, and the certificate that it serves with.

Made once per state directory. Strict verifiers (Python with VERIFY_X509_STRICT, OpenSSL 3) ask for key identifiers,
basic constraints and key usage on both.
"""

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_LIFETIME = datetime.timedelta(days=3650)
# What browsers and some TLS stacks take at most.
LEAF_LIFETIME = datetime.timedelta(days=397)
RENEW_BEFORE = datetime.timedelta(days=14)
# For clients whose clock is behind.
BACKDATED = datetime.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where the hub keeps its trust. `certificate` and `key` serve TLS; `ca` is what clients trust."""

    ca: Path
    ca_key: Path
    certificate: Path
    key: Path

    @classmethod
    def within(cls, directory: Path) -> "CertificateFiles":
        return cls(directory / "ca.pem", directory / "ca-key.pem", directory / "hub.pem", directory / "hub-key.pem")


def ensure_certificates(directory: Path, host_names: tuple[str, ...], now: datetime.datetime) -> CertificateFiles:
    """Make what is missing, outdated or made for other names; returns where it is.

    Args:
        host_names: DNS names and IP addresses that clients will connect to.
    """
    files = CertificateFiles.within(directory)
    if not _is_current_ca(files, now):
        _make_ca(files, now)
        files.certificate.unlink(missing_ok=True)
    if not _is_current_leaf(files, host_names, now):
        _make_leaf(files, host_names, now)
    return files


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step; nobody but its owner may read it, at no moment."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _is_current_ca(files: CertificateFiles, now: datetime.datetime) -> bool:
    if not files.ca.exists() or not files.ca_key.exists():
        return False
    return read_pem(files.ca).not_valid_after_utc - LEAF_LIFETIME > now


def _is_current_leaf(files: CertificateFiles, host_names: tuple[str, ...], now: datetime.datetime) -> bool:
    if not files.certificate.exists() or not files.key.exists():
        return False
    leaf = read_pem(files.certificate)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return leaf.not_valid_after_utc - RENEW_BEFORE > now and set(names) == set(_alternative_names(host_names))


def read_pem(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _make_ca(files: CertificateFiles, now: datetime.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # The serial in the name keeps two authorities of one machine apart in a trust store.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"slipway-sim CA {serial % 16**8:08x}")])
    certificate = (
        certificate_builder(name, name, key, serial, now, CA_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_private(files.ca_key, key_text(key))
    write_public(files.ca, certificate.public_bytes(serialization.Encoding.PEM))


def _make_leaf(files: CertificateFiles, host_names: tuple[str, ...], now: datetime.datetime) -> None:
    authority = read_pem(files.ca)
    authority_key = serialization.load_pem_private_key(files.ca_key.read_bytes(), password=None)
    if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{files.ca_key} holds no elliptic curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host_names[0])])
    certificate = (
        certificate_builder(name, authority.subject, key, x509.random_serial_number(), now, LEAF_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternative_names(host_names)), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    write_private(files.key, key_text(key))
    write_public(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))


def certificate_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    serial: int,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now - BACKDATED + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_names(host_names: tuple[str, ...]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = []
    for host_name in host_names:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host_name)))
        except ValueError:
            names.append(x509.DNSName(host_name))
    return names


def key_text(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def write_public(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(content)
    temporary.replace(path)
