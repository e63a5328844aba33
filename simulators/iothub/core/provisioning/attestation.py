"""How an enrollment recognises a device: by a symmetric key, or by a certificate.

Source: https://learn.microsoft.com/azure/iot-dps/concepts-service#attestation-mechanism.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from simulators.iothub.core.access import SasToken, is_key
from simulators.iothub.core.certificates import (
    ShownCertificate,
    certificate_text,
    read_certificate,
    thumbprints_of,
)
from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.ports import Entropy
from simulators.iothub.errors import Fault, ServiceError


@dataclass(frozen=True, slots=True)
class Proof:
    """Who a device says it is, and what it shows for it: a token, or certificates in DER, its own first."""

    registration_id: str
    credential: str
    certificates: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Proven:
    """A proof that holds: how the hub is to recognise the device, and when its token ends, if it has one."""

    authentication: dict[str, Any]
    expires_at: float | None


def derived_key(group_key: str, registration_id: str) -> str:
    """The key of one device of a group."""
    digest = hmac.digest(base64.b64decode(group_key), registration_id.encode(), hashlib.sha256)
    return base64.b64encode(digest).decode()


@dataclass(frozen=True, slots=True)
class SymmetricKeys:
    """Two keys: a device's own, or those of a group, from which each device's are derived."""

    keys: tuple[str, str]
    is_group: bool

    def prove(self, proof: Proof, id_scope: str, now: float) -> Proven:
        """Raises ServiceError unless the token is signed by a key of this device."""
        keys = self.keys
        if self.is_group:
            keys = (derived_key(keys[0], proof.registration_id), derived_key(keys[1], proof.registration_id))
        token = SasToken.parse(proof.credential)
        if not token.is_signed_by(keys):
            raise refused("the signature of the token does not match the keys of the enrollment")
        scope, *segments = token.path
        wanted = ["registrations", proof.registration_id.lower()]
        if scope != id_scope.lower() or [segment.lower() for segment in segments] != wanted:
            raise refused(f"the token is for {'/'.join(token.path)}, not for {id_scope}/{'/'.join(wanted)}")
        if token.expires_at <= now:
            raise refused(f"the token expired {now - token.expires_at:.0f} s ago")
        symmetric = {"primaryKey": keys[0], "secondaryKey": keys[1]}
        return Proven({"type": "sas", "symmetricKey": symmetric}, token.expires_at)

    def document(self, *, with_keys: bool) -> dict[str, Any]:
        shown = self.keys if with_keys else (None, None)
        return {"type": "symmetricKey", "symmetricKey": {"primaryKey": shown[0], "secondaryKey": shown[1]}}

    def record(self) -> dict[str, Any]:
        return self.document(with_keys=True)


@dataclass(frozen=True, slots=True)
class Certificates:
    """One or two certificates: a device's own (`is_group` False), or those of authorities that issue for a group."""

    certificates: tuple[x509.Certificate, ...]
    is_group: bool

    @property
    def _kind(self) -> str:
        return "signingCertificates" if self.is_group else "clientCertificates"

    def prove(self, proof: Proof, _id_scope: str, now: float) -> Proven:
        """Raises ServiceError unless the certificate is one of these, or leads to one of them."""
        shown = _shown_for(proof)
        if self.is_group:
            shown.check_issued_under(self.certificates, now)
        else:
            registered = [thumbprints_of(entry.public_bytes(Encoding.DER))[1] for entry in self.certificates]
            shown.check_thumbprint(registered, now)
        return _by_thumbprint(shown)

    def document(self, *, with_keys: bool) -> dict[str, Any]:
        del with_keys
        names = ("primary", "secondary")
        entries = {name: {"info": _info(entry)} for name, entry in zip(names, self.certificates, strict=False)}
        return {"type": "x509", "x509": {self._kind: entries}}

    def record(self) -> dict[str, Any]:
        names = ("primary", "secondary")
        entries = {
            name: {"certificate": certificate_text(entry)}
            for name, entry in zip(names, self.certificates, strict=False)
        }
        return {"type": "x509", "x509": {self._kind: entries}}


@dataclass(frozen=True, slots=True)
class AuthorityReferences:
    """The names of authorities that are registered with the service; `find` gives the certificate of one, or None."""

    names: tuple[str, ...]
    find: Callable[[str], x509.Certificate | None]

    def prove(self, proof: Proof, _id_scope: str, now: float) -> Proven:
        """Raises ServiceError unless the certificate leads to one of the authorities."""
        shown = _shown_for(proof)
        shown.check_issued_under([entry for name in self.names if (entry := self.find(name))], now)
        return _by_thumbprint(shown)

    def document(self, *, with_keys: bool) -> dict[str, Any]:
        del with_keys
        return self.record()

    def record(self) -> dict[str, Any]:
        references = dict(zip(("primary", "secondary"), self.names, strict=False))
        return {"type": "x509", "x509": {"caReferences": references}}


Attestation = SymmetricKeys | Certificates | AuthorityReferences


def restore_attestation(
    record: dict[str, Any], find: Callable[[str], x509.Certificate | None], *, is_group: bool
) -> Attestation:
    """An attestation from its record; authorities that it names need not be there yet."""
    x509_part = record.get("x509", {})
    if "caReferences" in x509_part:
        return AuthorityReferences(tuple(x509_part["caReferences"].values()), find)
    if x509_part:
        entries = next(iter(x509_part.values())).values()
        return Certificates(tuple(read_certificate(entry["certificate"], "a record") for entry in entries), is_group)
    symmetric = record["symmetricKey"]
    return SymmetricKeys((symmetric["primaryKey"], symmetric["secondaryKey"]), is_group)


def read_attestation(
    document: Any,
    before: Attestation | None,
    entropy: Entropy,
    find: Callable[[str], x509.Certificate | None],
    *,
    is_group: bool,
) -> Attestation:
    """The attestation of an enrollment document; keys that are left out stay as they were, or are made.

    Raises:
        ServiceError: ArgumentInvalid.
    """
    attestation = dictionary(document, "attestation")
    kind = attestation.get("type")
    if kind == "symmetricKey":
        return _read_keys(dictionary(attestation, "symmetricKey"), before, entropy, is_group=is_group)
    if kind == "x509":
        return _read_x509(dictionary(attestation, "x509"), before, find, is_group=is_group)
    raise invalid(f"attestation type {kind!r}: this service knows symmetricKey and x509")


def _read_keys(
    symmetric: dict[str, Any], before: Attestation | None, entropy: Entropy, *, is_group: bool
) -> SymmetricKeys:
    keys = (symmetric.get("primaryKey"), symmetric.get("secondaryKey"))
    if not any(keys):
        return before if isinstance(before, SymmetricKeys) else SymmetricKeys((entropy.key(), entropy.key()), is_group)
    primary, secondary = keys
    if not (isinstance(primary, str) and is_key(primary) and isinstance(secondary, str) and is_key(secondary)):
        raise invalid("both symmetric keys must be base64 of 16 to 64 bytes")
    return SymmetricKeys((primary, secondary), is_group)


def _read_x509(
    document: dict[str, Any],
    before: Attestation | None,
    find: Callable[[str], x509.Certificate | None],
    *,
    is_group: bool,
) -> Attestation:
    if document.get("caReferences"):
        references = dictionary(document, "caReferences")
        names = tuple(str(name) for key in ("primary", "secondary") if (name := references.get(key)))
        for name in names:
            if find(name) is None:
                raise invalid(f"caReferences: no certificate {name!r} is registered")
        return AuthorityReferences(names, find)
    kind = "signingCertificates" if is_group else "clientCertificates"
    entries = dictionary(document, kind)
    texts = [
        text for key in ("primary", "secondary") if (text := dictionary(entries, key).get("certificate")) is not None
    ]
    # What an enrollment shows of its certificates is not what it was made from, so an update may leave them out.
    if not texts and isinstance(before, Certificates):
        return before
    if not texts:
        raise invalid(f"attestation.x509 needs {kind}.primary.certificate or caReferences")
    return Certificates(tuple(read_certificate(text, f"{kind} certificate") for text in texts), is_group)


def _shown_for(proof: Proof) -> ShownCertificate:
    shown = ShownCertificate.read(proof.certificates)
    if shown.common_name.lower() != proof.registration_id.lower():
        raise refused(f"the certificate is for {shown.common_name!r}, not for {proof.registration_id!r}")
    return shown


def _by_thumbprint(shown: ShownCertificate) -> Proven:
    """The hub knows a provisioned device by the thumbprint of what it showed."""
    thumbprint = thumbprints_of(shown.own.public_bytes(Encoding.DER))[1]
    return Proven({"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": thumbprint}}, None)


def _info(certificate: x509.Certificate) -> dict[str, Any]:
    sha1, sha256 = thumbprints_of(certificate.public_bytes(Encoding.DER))
    return {
        "subjectName": certificate.subject.rfc4514_string(),
        "sha1Thumbprint": sha1,
        "sha256Thumbprint": sha256,
        "issuerName": certificate.issuer.rfc4514_string(),
        "notBeforeUtc": wire_time(certificate.not_valid_before_utc.timestamp()),
        "notAfterUtc": wire_time(certificate.not_valid_after_utc.timestamp()),
        "serialNumber": f"{certificate.serial_number:X}",
        "version": certificate.version.value + 1,
    }


def dictionary(document: Any, key: str) -> dict[str, Any]:
    """A member that is an object; empty where it is absent."""
    value = document.get(key) if isinstance(document, dict) else None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(f"{key} is not an object")
    return value


def invalid(message: str) -> ServiceError:
    return ServiceError(Fault.ArgumentInvalid, message)


def refused(message: str) -> ServiceError:
    return ServiceError(Fault.IotHubUnauthorizedAccess, f"Unauthorized: {message}")
