"""The identity registry: devices and the modules on them."""

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from simulators.iothub.core.access import is_key
from simulators.iothub.core.certificates import plain_thumbprint
from simulators.iothub.core.instants import NEVER, wire_time
from simulators.iothub.core.ledger import forget
from simulators.iothub.core.ports import Entropy
from simulators.iothub.errors import Fault, ServiceError

# https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-identity-registry#device-identity-properties
_IDENTIFIER = re.compile(r"[A-Za-z0-9\-.%_*?!(),:=@$']{1,128}")
MODULES_PER_DEVICE_MAX = 50
# The place of the counters among the records: no client id holds this character.
COUNTERS = "#"
EDGE_MODULES = ("$edgeAgent", "$edgeHub")
AUTHENTICATION_TYPES = ("sas", "selfSigned", "certificateAuthority", "none")


class IdentityId(NamedTuple):
    """A device, or with `module_id` a module on it."""

    device_id: str
    module_id: str = ""

    @property
    def client_id(self) -> str:
        """The MQTT client id."""
        return f"{self.device_id}/{self.module_id}" if self.module_id else self.device_id

    @property
    def path(self) -> tuple[str, ...]:
        """The path of its resource on the hub, which its tokens are made for."""
        module = ("modules", self.module_id) if self.module_id else ()
        return ("devices", self.device_id, *module)

    @property
    def device(self) -> "IdentityId":
        return IdentityId(self.device_id)

    @classmethod
    def of_client(cls, client_id: str) -> "IdentityId":
        device_id, _, module_id = client_id.partition("/")
        return cls(device_id, module_id)


@dataclass(slots=True)
class Identity:
    """What the registry keeps about one device or module. `ordinal` orders identities by their creation."""

    id: IdentityId
    ordinal: int
    generation_id: str
    etag: str = ""
    status: str = "enabled"
    status_reason: str | None = None
    status_updated_at: str = NEVER
    authentication_type: str = "sas"
    keys: tuple[str | None, str | None] = (None, None)
    thumbprints: tuple[str | None, str | None] = (None, None)
    is_edge: bool = False
    device_scope: str | None = None
    parent_scopes: list[str] = field(default_factory=list)
    managed_by: str | None = None
    is_connected: bool = False
    connection_updated_at: str = NEVER
    last_activity_at: str = NEVER
    message_count: int = 0

    @property
    def sas_keys(self) -> tuple[str, ...]:
        return tuple(key for key in self.keys if key) if self.authentication_type == "sas" else ()

    @property
    def connection_state(self) -> str:
        return "Connected" if self.is_connected else "Disconnected"

    def document(self) -> dict[str, Any]:
        """The identity as the REST API shows it."""
        common = {
            "deviceId": self.id.device_id,
            "generationId": self.generation_id,
            "etag": self.etag,
            "connectionState": self.connection_state,
            "connectionStateUpdatedTime": self.connection_updated_at,
            "lastActivityTime": self.last_activity_at,
            "cloudToDeviceMessageCount": self.message_count,
            "authentication": {
                "symmetricKey": {"primaryKey": self.keys[0], "secondaryKey": self.keys[1]},
                "x509Thumbprint": {
                    "primaryThumbprint": self.thumbprints[0],
                    "secondaryThumbprint": self.thumbprints[1],
                },
                "type": self.authentication_type,
            },
        }
        if self.id.module_id:
            return {**common, "moduleId": self.id.module_id, "managedBy": self.managed_by}
        scope = {"deviceScope": self.device_scope, "parentScopes": self.parent_scopes} if self.device_scope else {}
        return {
            **common,
            "status": self.status,
            "statusReason": self.status_reason,
            "statusUpdatedTime": self.status_updated_at,
            "capabilities": {"iotEdge": self.is_edge},
            **scope,
        }


# The fields that do not outlive a restart: connections end with it, messages are counted anew where they wait, and to
# write down activity would double the cost of a message.
_FLEETING = ("id", "is_connected", "connection_updated_at", "last_activity_at", "message_count")
_KEPT = tuple(each.name for each in fields(Identity) if each.name not in _FLEETING)


def matches_etag(condition: str, etag: str) -> bool:
    """Whether an If-Match header lets a write pass. SDKs quote even the star; the CLI leaves the quotes out."""
    wanted = condition.strip().removeprefix("W/").strip('"')
    return wanted in ("*", etag)


def check_etag(condition: str | None, etag: str, what: str) -> None:
    if condition is not None and not matches_etag(condition, etag):
        raise ServiceError(
            Fault.PreconditionFailed, f"the ETag {condition} is not that of {what}, which is {etag}; read it again"
        )


class Registry:
    """All identities of a hub, in the order of their creation."""

    def __init__(self, entropy: Entropy, touch: Callable[[str], None] = forget) -> None:
        self._entropy = entropy
        self._touch = touch
        self._devices: dict[str, Identity] = {}
        self._modules: dict[str, dict[str, Identity]] = {}
        self._ordinal = 0
        self._etags = 0

    def get(self, identity_id: IdentityId) -> Identity:
        """The identity; raises ServiceError DeviceNotFound or ModuleNotFound."""
        device = self._devices.get(identity_id.device_id)
        if device is None:
            raise ServiceError(Fault.DeviceNotFound, f"device {identity_id.device_id} is not registered")
        if not identity_id.module_id:
            return device
        module = self._modules[identity_id.device_id].get(identity_id.module_id)
        if module is None:
            raise ServiceError(
                Fault.ModuleNotFound,
                f"module {identity_id.module_id} is not registered on device {identity_id.device_id}",
            )
        return module

    def find(self, identity_id: IdentityId) -> Identity | None:
        """The identity, or None."""
        if identity_id.module_id:
            return self._modules.get(identity_id.device_id, {}).get(identity_id.module_id)
        return self._devices.get(identity_id.device_id)

    def devices(self) -> Iterator[Identity]:
        yield from self._devices.values()

    def modules(self) -> Iterator[Identity]:
        for modules in self._modules.values():
            yield from modules.values()

    def modules_of(self, device_id: str) -> list[Identity]:
        self.get(IdentityId(device_id))
        return list(self._modules[device_id].values())

    def family(self, identity_id: IdentityId) -> list[Identity]:
        """An identity, and with a device its modules."""
        identity = self.get(identity_id)
        return [identity] if identity_id.module_id else [identity, *self.modules_of(identity_id.device_id)]

    def generation_of(self, device_id: str) -> str:
        return self.get(IdentityId(device_id)).generation_id

    def count(self, device_id: str, messages: int) -> None:
        """Note how many messages wait for a device."""
        if device := self._devices.get(device_id):
            device.message_count = messages

    def is_enabled(self, identity_id: IdentityId) -> bool:
        """A module is enabled while its device is."""
        return self.get(identity_id.device).status == "enabled"

    def put(self, identity_id: IdentityId, document: Any, if_match: str | None, now: float) -> tuple[Identity, ...]:
        """Create an identity (no `if_match`) or replace it (with one).

        Returns:
            The identities that are new: none for an update, three for an edge device with its two system modules.

        Raises:
            ServiceError: 400 for a bad document, 404, 409 where it exists already, 412 for a stale ETag.
        """
        check_identifier(identity_id)
        changes = _read_identity(identity_id, document)
        if if_match is not None:
            identity = self.get(identity_id)
            check_etag(if_match, identity.etag, identity_id.client_id)
            self._apply(identity, changes, now)
            return ()
        self._check_room_for(identity_id)
        created = [self._create(identity_id, changes, now)]
        if created[0].is_edge:
            created += [
                self._create(IdentityId(identity_id.device_id, name), {"managedBy": "IotEdge"}, now)
                for name in EDGE_MODULES
            ]
        return tuple(created)

    def delete(self, identity_id: IdentityId, if_match: str | None) -> tuple[IdentityId, ...]:
        """Remove an identity, with a device its modules too; returns all that are gone."""
        identity = self.get(identity_id)
        check_etag(if_match, identity.etag, identity_id.client_id)
        if identity_id.module_id:
            del self._modules[identity_id.device_id][identity_id.module_id]
            gone: tuple[IdentityId, ...] = (identity_id,)
        else:
            del self._devices[identity_id.device_id]
            modules = self._modules.pop(identity_id.device_id)
            gone = (identity_id, *(module.id for module in modules.values()))
        for each in gone:
            self._touch(each.client_id)
        return gone

    def record(self, key: str) -> Any | None:
        """An identity as JSON, without what a restart ends: its connection."""
        if key == COUNTERS:
            return [self._ordinal, self._etags] if self._ordinal else None
        identity = self.find(IdentityId.of_client(key))
        if identity is None:
            return None
        return {name: getattr(identity, name) for name in _KEPT}

    def restore(self, key: str, record: Any) -> None:
        if key == COUNTERS:
            self._ordinal, self._etags = record
            return
        identity_id = IdentityId.of_client(key)
        pairs = {name: tuple(record[name]) for name in ("keys", "thumbprints")}
        identity = Identity(identity_id, **{**record, **pairs})
        modules = self._modules.setdefault(identity_id.device_id, {})
        if identity_id.module_id:
            modules[identity_id.module_id] = identity
        else:
            self._devices[identity_id.device_id] = identity

    def put_in_order(self) -> None:
        """Bring identities that were restored back into the order of their creation."""
        self._devices = dict(sorted(self._devices.items(), key=lambda item: item[1].ordinal))
        self._modules = {
            device_id: dict(sorted(self._modules[device_id].items(), key=lambda item: item[1].ordinal))
            for device_id in self._devices
        }

    def statistics(self) -> dict[str, int]:
        enabled = sum(device.status == "enabled" for device in self._devices.values())
        total = len(self._devices)
        return {"totalDeviceCount": total, "enabledDeviceCount": enabled, "disabledDeviceCount": total - enabled}

    def _check_room_for(self, identity_id: IdentityId) -> None:
        if not identity_id.module_id:
            if identity_id.device_id in self._devices:
                raise ServiceError(Fault.DeviceAlreadyExists, f"device {identity_id.device_id} is registered already")
            return
        modules = self._modules.get(identity_id.device_id)
        if modules is None:
            raise ServiceError(Fault.DeviceNotFound, f"device {identity_id.device_id} is not registered")
        if identity_id.module_id in modules:
            raise ServiceError(
                Fault.ModuleAlreadyExistsOnDevice,
                f"module {identity_id.module_id} is registered on device {identity_id.device_id} already",
            )
        if len(modules) >= MODULES_PER_DEVICE_MAX:
            raise ServiceError(Fault.TooManyModulesOnDevice, f"a device has {MODULES_PER_DEVICE_MAX} modules at most")

    def _create(self, identity_id: IdentityId, changes: dict[str, Any], now: float) -> Identity:
        self._ordinal += 1
        identity = Identity(identity_id, self._ordinal, self._entropy.identifier())
        if identity_id.module_id:
            self._modules[identity_id.device_id][identity_id.module_id] = identity
        else:
            self._devices[identity_id.device_id] = identity
            self._modules[identity_id.device_id] = {}
        self._apply(identity, changes, now)
        if identity.is_edge:
            identity.device_scope = f"ms-azure-iot-edge://{identity_id.device_id}-{identity.generation_id}"
        identity.status_updated_at = NEVER
        return identity

    def _apply(self, identity: Identity, changes: dict[str, Any], now: float) -> None:
        status = changes.get("status", "enabled")
        if status != identity.status:
            identity.status_updated_at = wire_time(now)
        identity.status = status
        identity.status_reason = changes.get("statusReason")
        identity.authentication_type = changes.get("type", "sas")
        identity.thumbprints = changes.get("thumbprints", (None, None))
        identity.is_edge = changes.get("isEdge", identity.is_edge)
        identity.parent_scopes = changes.get("parentScopes", identity.parent_scopes)
        identity.managed_by = changes.get("managedBy", identity.managed_by)
        if not identity.is_edge:
            identity.device_scope = changes.get("deviceScope", identity.device_scope)
        if identity.authentication_type != "sas":
            identity.keys = (None, None)
        elif changes.get("keys"):
            identity.keys = changes["keys"]
        elif not identity.keys[0]:
            identity.keys = (self._entropy.key(), self._entropy.key())
        self._etags += 1
        identity.etag = base64.b64encode(str(self._etags).encode()).decode()
        self._touch(identity.id.client_id)
        self._touch(COUNTERS)


def check_identifier(identity_id: IdentityId) -> None:
    for name in (identity_id.device_id, identity_id.module_id or "x"):
        if not _IDENTIFIER.fullmatch(name):
            raise ServiceError(
                Fault.ArgumentInvalid,
                f"{name!r} is not an id: use 1 to 128 letters, digits and - . % _ * ? ! ( ) , : = @ $ '",
            )


def _read_identity(identity_id: IdentityId, document: Any) -> dict[str, Any]:
    """The fields of a Device or Module document that a caller may set, checked."""
    if not isinstance(document, dict):
        raise ServiceError(Fault.ArgumentInvalid, "the body is not an identity document")
    for key, expected in (("deviceId", identity_id.device_id), ("moduleId", identity_id.module_id)):
        if expected and document.get(key) != expected:
            raise ServiceError(Fault.ArgumentInvalid, f"{key} in the body is {document.get(key)!r}, not {expected!r}")
    changes = _read_authentication(_dictionary(document, "authentication"))
    status = document.get("status")
    if status not in (None, "enabled", "disabled"):
        raise ServiceError(Fault.ArgumentInvalid, f"status is {status!r}; enabled and disabled exist")
    changes["status"] = status or "enabled"
    changes["statusReason"] = document.get("statusReason")
    changes["isEdge"] = _dictionary(document, "capabilities").get("iotEdge") is True and not identity_id.module_id
    for key in ("deviceScope", "managedBy", "parentScopes"):
        if document.get(key):
            changes[key] = document[key]
    return changes


def _read_authentication(authentication: dict[str, Any]) -> dict[str, Any]:
    kind = authentication.get("type") or "sas"
    if kind not in AUTHENTICATION_TYPES:
        raise ServiceError(Fault.ArgumentInvalid, f"authentication type {kind!r} does not exist")
    thumbprint = _dictionary(authentication, "x509Thumbprint")
    changes: dict[str, Any] = {
        "type": kind,
        "thumbprints": (thumbprint.get("primaryThumbprint"), thumbprint.get("secondaryThumbprint")),
    }
    shown = [text for text in changes["thumbprints"] if text]
    if kind == "selfSigned" and not (shown and all(plain_thumbprint(text) for text in shown)):
        raise ServiceError(Fault.ArgumentInvalid, "selfSigned needs a thumbprint of 40 or 64 hexadecimal digits")
    symmetric = _dictionary(authentication, "symmetricKey")
    keys = (symmetric.get("primaryKey"), symmetric.get("secondaryKey"))
    if any(keys):
        if not all(isinstance(key, str) and is_key(key) for key in keys):
            raise ServiceError(Fault.ArgumentInvalid, "both symmetric keys must be base64 of 16 to 64 bytes")
        changes["keys"] = keys
    return changes


def _dictionary(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ServiceError(Fault.ArgumentInvalid, f"{key} is not an object")
    return value
