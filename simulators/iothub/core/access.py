"""Who may do what: shared access signatures, hub policies and their rights.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-dev-guide-sas.
"""

import base64
import binascii
import enum
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote

from simulators.iothub.core.ports import Entropy
from simulators.iothub.errors import Fault, ServiceError

_PREFIX = "SharedAccessSignature "


class Right(enum.Flag):
    REGISTRY_READ = enum.auto()
    REGISTRY_WRITE = enum.auto()
    SERVICE_CONNECT = enum.auto()
    DEVICE_CONNECT = enum.auto()
    PROVISIONING = enum.auto()


ALL_RIGHTS = Right.REGISTRY_READ | Right.REGISTRY_WRITE | Right.SERVICE_CONNECT | Right.DEVICE_CONNECT

# The policies that a new hub has, with their rights.
DEFAULT_POLICIES = {
    "iothubowner": ALL_RIGHTS,
    "service": Right.SERVICE_CONNECT,
    "device": Right.DEVICE_CONNECT,
    "registryRead": Right.REGISTRY_READ,
    "registryReadWrite": Right.REGISTRY_READ | Right.REGISTRY_WRITE,
}
# Those of its provisioning service.
PROVISIONING_POLICIES = {"provisioningserviceowner": Right.PROVISIONING}


@dataclass(frozen=True, slots=True)
class Policy:
    """A named pair of keys (base64) that grants rights on the whole hub."""

    name: str
    rights: Right
    keys: tuple[str, str]


def new_policies(entropy: Entropy, rights_by_name: Mapping[str, Right] = DEFAULT_POLICIES) -> tuple[Policy, ...]:
    """The default policies, or others, with fresh keys."""
    return tuple(Policy(name, rights, (entropy.key(), entropy.key())) for name, rights in rights_by_name.items())


@dataclass(frozen=True, slots=True)
class SasToken:
    """A shared access signature, taken apart. `resource` stays as it was spelled, since that spelling is signed."""

    resource: str
    signature: str
    expires_at: int
    policy: str

    @classmethod
    def parse(cls, text: str) -> "SasToken":
        """Read a token, its fields in any order.

        Raises:
            ServiceError: IotHubUnauthorized; a field is missing, doubled or malformed.
        """
        if not text.startswith(_PREFIX) or not text.isascii():
            raise _refused("the credential is not a shared access signature")
        fields: dict[str, str] = {}
        for part in text[len(_PREFIX) :].split("&"):
            key, equals, value = part.partition("=")
            if not equals or key in fields:
                raise _refused(f"the shared access signature has a malformed field {key!r}")
            fields[key] = value
        expiry = fields.get("se", "")
        if not fields.get("sr") or not fields.get("sig") or not (expiry.isascii() and expiry.isdigit()):
            raise _refused("the shared access signature lacks sr, sig or a numeric se")
        if len(expiry) > 15:
            raise _refused("the shared access signature expires beyond reason")
        return cls(fields["sr"], unquote(fields["sig"]), int(expiry), unquote(fields.get("skn", "")))

    @property
    def path(self) -> tuple[str, ...]:
        """The resource as path segments, the host name first and without its port."""
        host, *segments = unquote(self.resource).rstrip("/").split("/")
        return (host.lower().partition(":")[0], *segments)

    def is_signed_by(self, keys: Iterable[str]) -> bool:
        ours = (signature(key, self.resource, self.expires_at) for key in keys)
        # As bytes: comparing strings in constant time is for ASCII only, and a token may hold anything.
        return any(hmac.compare_digest(self.signature.encode(), candidate.encode()) for candidate in ours)


def signature(key: str, resource: str, expires_at: int) -> str:
    """HMAC-SHA256 in base64 over the resource as spelled in the token, a newline and the expiry."""
    digest = hmac.digest(base64.b64decode(key), f"{resource}\n{expires_at}".encode(), hashlib.sha256)
    return base64.b64encode(digest).decode()


def make_token(key: str, resource: str, expires_at: int, policy: str = "") -> str:
    """A token for `resource` (not yet quoted), as the SDKs make it."""
    quoted = quote(resource, safe="")
    token = f"{_PREFIX}sr={quoted}&sig={quote(signature(key, quoted, expires_at), safe='')}&se={expires_at}"
    return f"{token}&skn={policy}" if policy else token


def is_bearer_token(text: str) -> bool:
    """Whether this is a token of Microsoft Entra. Nobody is here who could check one, so any opens the service side."""
    return text.startswith("Bearer ") and bool(text.removeprefix("Bearer ").strip())


def is_key(text: str) -> bool:
    """Whether a text can be a symmetric key: base64 of 16 to 64 bytes."""
    try:
        return 16 <= len(base64.b64decode(text, validate=True)) <= 64
    except (binascii.Error, ValueError):
        return False


class Gatekeeper:
    """Judges tokens for a hub that goes by `host_names` and has `policies`."""

    def __init__(self, host_names: Iterable[str], policies: Iterable[Policy]) -> None:
        self._host_names = frozenset(name.lower() for name in host_names)
        self._policies = {policy.name: policy for policy in policies}

    def knows_host(self, host_name: str) -> bool:
        return host_name.lower().partition(":")[0] in self._host_names

    def policy(self, name: str) -> Policy:
        return self._policies[name]

    def check_service(self, authorization: str | None, right: Right, path: tuple[str, ...], now: float) -> None:
        """Let a service call pass; `path` is the requested resource below the host.

        Raises:
            ServiceError: IotHubUnauthorizedAccess for a bad token, IotHubUnauthorized for one without the right.
        """
        if not authorization:
            raise _refused("the request carries no Authorization header")
        if is_bearer_token(authorization):
            return
        self._check_policy(SasToken.parse(authorization), right, path, now)

    def check_device(self, credential: str, keys: tuple[str, ...], path: tuple[str, ...], now: float) -> int:
        """Let a device in, by its own keys or by a policy that may connect devices; returns when the token ends.

        Raises:
            ServiceError: IotHubUnauthorizedAccess or IotHubUnauthorized, and why.
        """
        token = SasToken.parse(credential)
        if token.policy:
            self._check_policy(token, Right.DEVICE_CONNECT, path, now)
            return token.expires_at
        if not token.is_signed_by(keys):
            raise _refused("the signature of the token does not match the device's keys")
        host, *segments = token.path
        if not self.knows_host(host) or tuple(segments) != path:
            raise _refused(f"the token is for {'/'.join(token.path)}, not for {'/'.join(path)} on this hub")
        _check_expiry(token, now)
        return token.expires_at

    def _check_policy(self, token: SasToken, right: Right, path: tuple[str, ...], now: float) -> None:
        policy = self._policies.get(token.policy)
        if policy is None or not token.is_signed_by(policy.keys):
            raise _refused(f"the token is not signed by a key of policy {token.policy!r}")
        host, *segments = token.path
        if not self.knows_host(host) or path[: len(segments)] != tuple(segments):
            raise _refused(f"the token is for {'/'.join(token.path)}, which does not cover /{'/'.join(path)}")
        _check_expiry(token, now)
        if right not in policy.rights:
            raise ServiceError(Fault.IotHubUnauthorized, f"policy {policy.name} does not grant {right.name}")


def _check_expiry(token: SasToken, now: float) -> None:
    if token.expires_at <= now:
        raise _refused(f"the token expired {now - token.expires_at:.0f} s ago")


def _refused(message: str) -> ServiceError:
    return ServiceError(Fault.IotHubUnauthorizedAccess, f"Unauthorized: {message}")
