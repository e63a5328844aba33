"""X.509: what a client showed in its TLS handshake, judged by thumbprint or by known authorities. Pure.

That the client owns the key of its certificate was proven in the handshake. Source:
https://learn.microsoft.com/azure/iot-hub/authenticate-authorize-x509.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from simulators.iothub.core.instants import wire_time
from simulators.iothub.errors import Fault, ServiceError

# Certificates between a device and a registered authority, both counted.
CHAIN_LENGTH_MAX = 10
# https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-quotas-throttling: X.509 CA certificates of a hub.
AUTHORITIES_MAX = 25
_THUMBPRINT = re.compile(r"[0-9A-F]{40}|[0-9A-F]{64}")
# What the library raises for certificates that nobody should have made.
_UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_AUTHORITY_NAME = re.compile(r"[A-Za-z0-9\-._]{1,64}")


def plain_thumbprint(text: Any) -> str | None:
    """A SHA-1 or SHA-256 thumbprint as hexadecimal capitals without separators; None for anything else."""
    if not isinstance(text, str):
        return None
    plain = re.sub(r"[:\s-]", "", text).upper()
    return plain if _THUMBPRINT.fullmatch(plain) else None


def thumbprints_of(der: bytes) -> tuple[str, str]:
    """SHA-1 and SHA-256 of a certificate."""
    # SHA-1 names a certificate here, as the service has it; it proves nothing.
    return hashlib.sha1(der).hexdigest().upper(), hashlib.sha256(der).hexdigest().upper()  # noqa: S324


@dataclass(frozen=True, slots=True)
class ShownCertificate:
    """A client's certificate, and those that it sent along to lead to an authority."""

    own: x509.Certificate
    others: tuple[x509.Certificate, ...]

    @classmethod
    def read(cls, ders: tuple[bytes, ...]) -> "ShownCertificate":
        """Read what the TLS adapter gives.

        Raises:
            ServiceError: IotHubUnauthorizedAccess; nothing was shown, or something that is no certificate.
        """
        if not ders:
            raise _refused("the client showed no certificate")
        try:
            own, *others = (_whole(x509.load_der_x509_certificate(der)) for der in ders[:CHAIN_LENGTH_MAX])
        except _UNREADABLE as err:
            raise _refused(f"the client showed a certificate that cannot be read: {err}") from err
        return cls(own, tuple(others))

    @property
    def common_name(self) -> str:
        return common_name(self.own)

    def check_thumbprint(self, registered: Iterable[str | None], now: float) -> None:
        """Raises ServiceError unless the certificate is one of those registered, and in its time."""
        ours = thumbprints_of(self.own.public_bytes(Encoding.DER))
        if not any(plain_thumbprint(text) in ours for text in registered if text):
            raise _refused(f"the certificate's thumbprint {ours[0]} is not registered for this device")
        _check_validity(self.own, now)

    def check_issued_under(self, authorities: Iterable[x509.Certificate], now: float) -> x509.Certificate:
        """The authority that the certificate leads to, each link signed, in its time and allowed to issue.

        Raises:
            ServiceError: IotHubUnauthorizedAccess, and why.
        """
        anchors = list(authorities)
        current = self.own
        for depth in range(CHAIN_LENGTH_MAX):
            _check_validity(current, now)
            anchor = _issuer(current, anchors, depth)
            if anchor is not None:
                _check_validity(anchor, now)
                return anchor
            parent = _issuer(current, self.others, depth)
            if parent is None or parent == current:
                break
            current = parent
        raise _refused(f"no registered authority has issued the certificate of {self.common_name!r}")


def common_name(certificate: x509.Certificate) -> str:
    """The first common name of the subject; empty where there is none."""
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        return str(attribute.value)
    return ""


def read_certificate(text: Any, what: str) -> x509.Certificate:
    """A certificate from PEM, or from the base64 of its PEM or DER, which is how management APIs carry it.

    Raises:
        ServiceError: ArgumentInvalid.
    """
    if isinstance(text, str) and text.strip():
        content = text.encode()
        try:
            if b"-----BEGIN" not in content:
                content = base64.b64decode(content, validate=False)
            if b"-----BEGIN" in content:
                return _whole(x509.load_pem_x509_certificate(content))
            return _whole(x509.load_der_x509_certificate(content))
        except _UNREADABLE as err:
            raise ServiceError(Fault.ArgumentInvalid, f"{what} is not a certificate: {err}") from err
    raise ServiceError(Fault.ArgumentInvalid, f"{what} is missing")


def is_authority(certificate: x509.Certificate, certificates_below: int = 0) -> bool:
    """Whether a certificate may issue others, with so many authorities between it and the last."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, *_UNREADABLE):
        return False
    return constraints.ca and (constraints.path_length is None or certificates_below <= constraints.path_length)


def certificate_text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


class Authorities:
    """The certificate authorities that a hub's devices may come with, by name.

    Args:
        touch: called with the name of whatever has changed.
    """

    def __init__(self, touch: Callable[[str], None] = lambda _key: None) -> None:
        self._touch = touch
        self._documents: dict[str, dict[str, Any]] = {}
        self._certificates: dict[str, x509.Certificate] = {}
        self._etags = 0

    def certificates(self) -> Iterable[x509.Certificate]:
        return self._certificates.values()

    def put(self, name: str, document: Any, now: float) -> dict[str, Any]:
        """Register an authority or replace it; the body holds ``properties.certificate``."""
        if not _AUTHORITY_NAME.fullmatch(name):
            raise ServiceError(Fault.ArgumentInvalid, f"{name!r} is not a name: 1 to 64 letters, digits and - . _")
        properties = document.get("properties") if isinstance(document, dict) else None
        certificate = read_certificate((properties or {}).get("certificate"), "properties.certificate")
        if not is_authority(certificate):
            raise ServiceError(Fault.ArgumentInvalid, f"{name}: the certificate is not an authority's (CA:TRUE)")
        if name not in self._documents and len(self._documents) >= AUTHORITIES_MAX:
            raise ServiceError(Fault.ArgumentInvalid, f"a hub knows {AUTHORITIES_MAX} authorities at most")
        self._etags += 1
        created = self._documents[name]["properties"]["created"] if name in self._documents else wire_time(now)
        self._documents[name] = {
            "name": name,
            "etag": base64.b64encode(str(self._etags).encode()).decode(),
            "properties": {
                "subject": common_name(certificate),
                "expiry": wire_time(certificate.not_valid_after_utc.timestamp()),
                "thumbprint": thumbprints_of(certificate.public_bytes(Encoding.DER))[0],
                "isVerified": True,
                "created": created,
                "updated": wire_time(now),
                "certificate": certificate_text(certificate),
            },
        }
        self._certificates[name] = certificate
        self._touch(name)
        return self._documents[name]

    def get(self, name: str) -> dict[str, Any]:
        if name not in self._documents:
            raise ServiceError(Fault.CertificateNotFound, f"certificate {name} is not registered")
        return self._documents[name]

    def find(self, name: str) -> x509.Certificate | None:
        return self._certificates.get(name)

    def documents(self) -> list[dict[str, Any]]:
        return list(self._documents.values())

    def delete(self, name: str) -> None:
        self.get(name)
        del self._documents[name], self._certificates[name]
        self._touch(name)

    def record(self, key: str) -> Any | None:
        """What of an authority has to survive, as JSON types; None where it is gone."""
        return self._documents.get(key)

    def restore(self, key: str, record: Any) -> None:
        self._documents[key] = record
        self._certificates[key] = read_certificate(record["properties"]["certificate"], key)
        self._etags = max(self._etags, int(base64.b64decode(record["etag"])))


def _whole(certificate: x509.Certificate) -> x509.Certificate:
    """The certificate, once everything that is asked of it later was found readable: the library reads at need."""
    _ = (certificate.subject, certificate.issuer, certificate.not_valid_before_utc, certificate.not_valid_after_utc)
    return certificate


def _issuer(
    certificate: x509.Certificate, candidates: Iterable[x509.Certificate], authorities_below: int
) -> x509.Certificate | None:
    for candidate in candidates:
        if is_authority(candidate, authorities_below) and _has_issued(candidate, certificate):
            return candidate
    return None


def _has_issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_validity(certificate: x509.Certificate, now: float) -> None:
    name = common_name(certificate)
    if now >= certificate.not_valid_after_utc.timestamp():
        raise _refused(f"the certificate of {name!r} ended at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC")
    if now < certificate.not_valid_before_utc.timestamp():
        raise _refused(
            f"the certificate of {name!r} begins at {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC"
        )


def _refused(message: str) -> ServiceError:
    return ServiceError(Fault.IotHubUnauthorizedAccess, f"Unauthorized: {message}")
