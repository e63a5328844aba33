"""Who the agent is, and how it shows that: a connection string, a certificate, a provisioning service, or IoT Edge."""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path

from device_agent.config.settings import DpsSettings, IdentitySettings
from device_agent.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the agent is at which hub; everything of a connection string but its secret."""

    host_name: str
    device_id: str
    module_id: str = ""

    def __str__(self) -> str:
        return f"{self.device_id}/{self.module_id}" if self.module_id else self.device_id


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """A client certificate with its chain, and its key, both in PEM."""

    certificate: Path
    private_key: Path
    pass_phrase: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ByConnectionString:
    connection_string: str = field(repr=False)
    kind = "connection string"


@dataclass(frozen=True, slots=True)
class ByCertificate:
    files: CertificateFiles
    kind = "X.509 certificate"


@dataclass(frozen=True, slots=True)
class ByProvisioning:
    """The hub and the device id come from a provisioning service; `key` is the device's own, never a group's."""

    endpoint: str
    id_scope: str
    registration_id: str
    key: str | None = field(default=None, repr=False)
    files: CertificateFiles | None = None

    @property
    def kind(self) -> str:
        return f"provisioning service by {'symmetric key' if self.key else 'X.509 certificate'}"


@dataclass(frozen=True, slots=True)
class ByEdgeEnvironment:
    kind = "IoT Edge environment"


Credentials = ByConnectionString | ByCertificate | ByProvisioning | ByEdgeEnvironment

_STRING_HINT = (
    "It reads HostName=…;DeviceId=…;ModuleId=…;SharedAccessKey=…, as the hub prints it for the module identity."
)
_NONE_HINT = (
    "Give --connection-string, set SLIPWAY_AGENT_CONNECTION_STRING, or write connection_string, [identity] with a "
    "certificate, or [dps] into the file given as --config."
)


def read_identity(
    connection_string: str | None, identity: IdentitySettings, dps: DpsSettings
) -> tuple[Identity, Credentials]:
    """The one identity that is configured; raises ConfigurationError where there is none, or more than one."""
    files = _certificate_files(identity)
    has_dps = any((dps.id_scope, dps.registration_id, dps.symmetric_key, dps.group_key))
    if has_dps:
        if connection_string or identity.host_name or identity.device_id:
            raise ConfigurationError(
                "The configuration names two identities: a provisioning service, and a hub with a device.",
                hint="Leave out [dps], or leave out connection_string and the host_name and device_id of [identity].",
            )
        provisioning = _provisioning(dps, files)
        # What the service assigns is mostly the registration's own name; until it has said so, that is who we are.
        return Identity(provisioning.endpoint, provisioning.registration_id), provisioning
    if connection_string and _is_by_certificate(connection_string):
        if files is None:
            raise ConfigurationError(
                "The connection string says x509=true, but there is no certificate.",
                hint="Set certificate and private_key in [identity].",
            )
        parts = _parts_of(connection_string)
        return _named(parts.get("HostName"), parts.get("DeviceId"), parts.get("ModuleId", "")), ByCertificate(files)
    if connection_string and files is not None:
        raise ConfigurationError(
            "The configuration names two identities: a connection string with a key, and a certificate.",
            hint="Leave out one of them; a certificate goes with host_name and device_id in [identity].",
        )
    if connection_string:
        return identity_of(connection_string), ByConnectionString(connection_string)
    if files is not None:
        return _named(identity.host_name, identity.device_id, identity.module_id), ByCertificate(files)
    raise ConfigurationError("The agent needs connection_string or another identity.", hint=_NONE_HINT)


def identity_of(connection_string: str) -> Identity:
    """Who a connection string is about; raises ConfigurationError, never quoting the string."""
    parts = _parts_of(connection_string)
    for key in ("HostName", "DeviceId", "SharedAccessKey"):
        if not parts.get(key):
            raise ConfigurationError(f"The connection string has no {key}.", hint=_STRING_HINT)
    _check_base64(parts["SharedAccessKey"], "The connection string's SharedAccessKey", _STRING_HINT)
    return Identity(parts["HostName"], parts["DeviceId"], parts.get("ModuleId", ""))


def derived_key(group_key: str, registration_id: str) -> str:
    """The key of one device of an enrollment group.

    https://learn.microsoft.com/azure/iot-dps/concepts-symmetric-key-attestation: HMAC-SHA256 of the registration id.
    """
    digest = hmac.digest(base64.b64decode(group_key), registration_id.encode(), hashlib.sha256)
    return base64.b64encode(digest).decode()


def secrets_of(credentials: Credentials) -> tuple[str, ...]:
    """What of the identity no line of a log may hold."""
    found = []
    if isinstance(credentials, ByConnectionString):
        found += [_parts_of(credentials.connection_string).get("SharedAccessKey", "")]
    if isinstance(credentials, ByProvisioning):
        found += [credentials.key or ""]
    return tuple(secret for secret in found if secret)


def _named(host_name: str | None, device_id: str | None, module_id: str) -> Identity:
    for key, value in (("host_name", host_name), ("device_id", device_id)):
        if not value:
            raise ConfigurationError(
                f"The agent needs {key} beside its certificate.", hint=f"Set {key} in [identity] of the configuration."
            )
    return Identity(host_name or "", device_id or "", module_id)


def _provisioning(dps: DpsSettings, files: CertificateFiles | None) -> ByProvisioning:
    for wanted in ("id_scope", "registration_id"):
        if not getattr(dps, wanted):
            raise ConfigurationError(
                f"The agent needs {wanted} to be provisioned.", hint=f"Set {wanted} in [dps] of the configuration."
            )
    given = [name for name, value in (
        ("symmetric_key", dps.symmetric_key), ("group_key", dps.group_key), ("certificate", files)
    ) if value]  # fmt: skip
    if len(given) != 1:
        raise ConfigurationError(
            f"The provisioning service is shown {' and '.join(given) or 'no key'}.",
            hint="Give one of symmetric_key or group_key in [dps], or certificate and private_key in [identity].",
        )
    key: str | None = None
    if files is None:
        name = given[0]
        secret = dps.symmetric_key or dps.group_key
        _check_base64(secret, f"{name} in [dps]", "Copy it again as the provisioning service shows it.")
        key = dps.symmetric_key or derived_key(dps.group_key, dps.registration_id)
    return ByProvisioning(dps.endpoint, dps.id_scope, dps.registration_id, key, files)


def _certificate_files(identity: IdentitySettings) -> CertificateFiles | None:
    if not identity.certificate and not identity.private_key:
        return None
    paths = []
    for key in ("certificate", "private_key"):
        text = getattr(identity, key)
        if not text:
            raise ConfigurationError(
                f"The agent needs {key} as well.", hint="A certificate and its private key go together in [identity]."
            )
        path = Path(text).expanduser()
        if not path.is_file():
            raise ConfigurationError(
                f"There is no {key.replace('_', ' ')} file {path}.", hint="Give a PEM file that the agent may read."
            )
        paths.append(path)
    return CertificateFiles(paths[0], paths[1], identity.pass_phrase or None)


def _parts_of(connection_string: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in connection_string.strip().strip('"').split(";") if part]
    return {key: value for key, _, value in pairs}


def _is_by_certificate(connection_string: str) -> bool:
    return _parts_of(connection_string).get("x509", "").lower() == "true"


def _check_base64(text: str, what: str, hint: str) -> None:
    try:
        base64.b64decode(text, validate=True)
    except binascii.Error as err:
        raise ConfigurationError(f"{what} is not Base64.", hint=hint) from err
