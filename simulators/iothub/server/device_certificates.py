"""Certificates for devices: self-signed, or issued by an authority that is made once per state directory."""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from simulators.iothub.server.certificates import (
    CA_LIFETIME,
    LEAF_LIFETIME,
    certificate_builder,
    key_text,
    key_usage,
    read_pem,
    write_private,
    write_public,
)

AUTHORITY_FILES = ("device-ca.pem", "device-ca-key.pem")


@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs: a certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its key in PEM; the certificate of the issuer follows the client's own where there is one."""

    certificate: bytes
    key: bytes

    def write(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Write ``NAME.pem`` and ``NAME-key.pem``; returns their paths."""
        directory.mkdir(parents=True, exist_ok=True)
        certificate, key = directory / f"{name}.pem", directory / f"{name}-key.pem"
        write_private(key, self.key)
        write_public(certificate, self.certificate)
        return certificate, key


def make_authority(
    common_name: str,
    now: datetime.datetime,
    lifetime: datetime.timedelta = CA_LIFETIME,
    issuer: Authority | None = None,
) -> Authority:
    """A new authority: a root, or with `issuer` one below it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    signer = issuer.key if issuer else key
    certificate = (
        certificate_builder(
            name, issuer.certificate.subject if issuer else name, key, x509.random_serial_number(), now, lifetime
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(key_usage(key_cert_sign=True, crl_sign=True, digital_signature=True), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    return Authority(certificate, key)


def make_device_certificate(
    common_name: str,
    now: datetime.datetime,
    issuer: Authority | None = None,
    lifetime: datetime.timedelta = LEAF_LIFETIME,
) -> KeyPair:
    """A client certificate for a device id (or ``device/module``): self-signed without an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    certificate = (
        certificate_builder(
            name, issuer.certificate.subject if issuer else name, key, x509.random_serial_number(), now, lifetime
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(issuer.key if issuer else key, hashes.SHA256())
    )
    own = certificate.public_bytes(Encoding.PEM)
    return KeyPair(own + (issuer.pem.encode() if issuer else b""), key_text(key))


def ensure_device_authority(directory: Path, now: datetime.datetime) -> Authority:
    """The authority of a state directory, made when there is none that is still good for a device's lifetime."""
    certificate_file, key_file = (directory / name for name in AUTHORITY_FILES)
    if certificate_file.exists() and key_file.exists():
        certificate = read_pem(certificate_file)
        key = serialization.load_pem_private_key(key_file.read_bytes(), password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey) and certificate.not_valid_after_utc - LEAF_LIFETIME > now:
            return Authority(certificate, key)
    authority = make_authority(f"slipway-sim device CA {x509.random_serial_number() % 16**8:08x}", now)
    write_private(key_file, key_text(authority.key))
    write_public(certificate_file, authority.pem.encode())
    return authority


def sha256_thumbprint(pair: KeyPair) -> str:
    return x509.load_pem_x509_certificate(pair.certificate).fingerprint(hashes.SHA256()).hex().upper()


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
