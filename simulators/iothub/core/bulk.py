"""Many identities in one request: each is done or refused by itself, and the answer names those refused.

Source: https://learn.microsoft.com/rest/api/iothub/service/bulk-registry/update-registry.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from simulators.iothub.core.json_text import parse_json
from simulators.iothub.core.registry import IdentityId, check_identifier
from simulators.iothub.errors import Fault, ServiceError

DEVICES_MAX = 100


class Identities(Protocol):
    """The part of a hub that a bulk request works on."""

    def put_identity(self, identity_id: IdentityId, document: Any, if_match: str | None, now: float) -> Any: ...

    def delete_identity(self, identity_id: IdentityId, if_match: str | None, now: float) -> None: ...

    def patch_twin(self, identity_id: IdentityId, body: Any, if_match: str | None, now: float) -> Any: ...

    def is_registered(self, identity_id: IdentityId) -> bool: ...


@dataclass(frozen=True, slots=True)
class BulkResult:
    """What came of a bulk request; `errors` are as the REST API shows them."""

    errors: tuple[dict[str, Any], ...]

    @property
    def is_successful(self) -> bool:
        return not self.errors

    def document(self) -> dict[str, Any]:
        return {"isSuccessful": self.is_successful, "errors": list(self.errors), "warnings": []}


def run_bulk(hub: Identities, body: Any, now: float) -> BulkResult:
    """Carry out a list of ExportImportDevice documents in order.

    Raises:
        ServiceError: ArgumentInvalid; the body is no such list, and nothing was done.
    """
    if not isinstance(body, list) or not all(isinstance(item, dict) for item in body):
        raise ServiceError(Fault.ArgumentInvalid, "the body is not a list of devices")
    if not 1 <= len(body) <= DEVICES_MAX:
        raise ServiceError(Fault.ArgumentInvalid, f"the list holds {len(body)} devices; 1 to {DEVICES_MAX} are allowed")
    errors: list[dict[str, Any]] = []
    done: set[IdentityId] = set()
    for item in body:
        try:
            identity_id = _identity_id(item, done)
            done.add(identity_id)
            run_item(hub, identity_id, item, now)
        except ServiceError as err:
            errors.append(_error(item, err))
    return BulkResult(tuple(errors))


def run_line(hub: Identities, line: bytes, now: float) -> dict[str, Any] | None:
    """Carry out one line of an import; returns its error as the REST API shows errors, None where it was done."""
    item: dict[str, Any] = {}
    try:
        read = parse_json(line, "the line")
        if not isinstance(read, dict):
            raise ServiceError(Fault.ArgumentInvalid, "the line is not a device")  # noqa: TRY301
        item = read
        run_item(hub, _identity_id(item, set()), item, now)
    except ServiceError as err:
        return _error(item, err)
    return None


def run_item(hub: Identities, identity_id: IdentityId, item: dict[str, Any], now: float) -> None:
    """Carry out one document; raises ServiceError where it is refused."""
    mode = item.get("importMode") or "createOrUpdate"
    operate = _MODES.get(mode) if isinstance(mode, str) else None
    if operate is None:
        raise ServiceError(Fault.ArgumentInvalid, f"importMode {mode!r} does not exist; there are {', '.join(_MODES)}")
    operate(hub, identity_id, item, now)


def _create(hub: Identities, identity_id: IdentityId, item: dict[str, Any], now: float) -> None:
    hub.put_identity(identity_id, _identity_document(identity_id, item), None, now)
    try:
        _write_twin(hub, identity_id, item, None, now)
    except ServiceError:
        # Half of an item is not done: the next attempt would find a device that it did not make.
        hub.delete_identity(identity_id, None, now)
        raise


def _create_or_update(hub: Identities, identity_id: IdentityId, item: dict[str, Any], now: float) -> None:
    operate = _update if hub.is_registered(identity_id) else _create
    operate(hub, identity_id, item, now)


def _update(hub: Identities, identity_id: IdentityId, item: dict[str, Any], now: float, if_match: str = "*") -> None:
    hub.put_identity(identity_id, _identity_document(identity_id, item), if_match, now)
    _write_twin(hub, identity_id, item, None, now)


def _update_if_match(hub: Identities, identity_id: IdentityId, item: dict[str, Any], now: float) -> None:
    _update(hub, identity_id, item, now, _etag(item, "eTag"))


def _delete(hub: Identities, identity_id: IdentityId, _item: dict[str, Any], now: float) -> None:
    hub.delete_identity(identity_id, "*", now)


def _delete_if_match(hub: Identities, identity_id: IdentityId, item: dict[str, Any], now: float) -> None:
    hub.delete_identity(identity_id, _etag(item, "eTag"), now)


def _update_twin(hub: Identities, identity_id: IdentityId, item: dict[str, Any], now: float) -> None:
    hub.patch_twin(identity_id, _twin_document(item), "*", now)


def _update_twin_if_match(hub: Identities, identity_id: IdentityId, item: dict[str, Any], now: float) -> None:
    hub.patch_twin(identity_id, _twin_document(item), _etag(item, "twinETag"), now)


_Operation = Callable[[Identities, IdentityId, dict[str, Any], float], None]
_MODES: dict[str, _Operation] = {
    "create": _create,
    "createOrUpdate": _create_or_update,
    "update": _update,
    "updateIfMatchETag": _update_if_match,
    "delete": _delete,
    "deleteIfMatchETag": _delete_if_match,
    "updateTwin": _update_twin,
    "updateTwinIfMatchETag": _update_twin_if_match,
}


def _identity_id(item: dict[str, Any], done: set[IdentityId]) -> IdentityId:
    device_id, module_id = item.get("id"), item.get("moduleId") or ""
    if not isinstance(device_id, str) or not isinstance(module_id, str):
        raise ServiceError(Fault.ArgumentInvalid, f"the id of a device is {device_id!r}")
    identity_id = IdentityId(device_id, module_id)
    check_identifier(identity_id)
    if identity_id in done:
        raise ServiceError(Fault.DeviceDefinedMultipleTimes, f"{identity_id.client_id} is in the list more than once")
    return identity_id


def _identity_document(identity_id: IdentityId, item: dict[str, Any]) -> dict[str, Any]:
    names = ("status", "statusReason", "authentication", "capabilities", "deviceScope", "parentScopes", "managedBy")
    document = {name: item[name] for name in names if item.get(name) is not None}
    document["deviceId"] = identity_id.device_id
    if identity_id.module_id:
        document["moduleId"] = identity_id.module_id
    return document


def _twin_document(item: dict[str, Any]) -> dict[str, Any]:
    return {name: item[name] for name in ("tags", "properties") if item.get(name) is not None}


def _write_twin(
    hub: Identities, identity_id: IdentityId, item: dict[str, Any], if_match: str | None, now: float
) -> None:
    document = _twin_document(item)
    if document:
        hub.patch_twin(identity_id, document, if_match, now)


def _etag(item: dict[str, Any], name: str) -> str:
    etag = item.get(name)
    if not isinstance(etag, str) or not etag:
        raise ServiceError(Fault.ArgumentInvalid, f"{item.get('importMode')} needs {name}, which is {etag!r}")
    return etag


def _error(item: dict[str, Any], err: ServiceError) -> dict[str, Any]:
    operation = item.get("importMode") or "createOrUpdate"
    return {
        "deviceId": item.get("id") if isinstance(item.get("id"), str) else None,
        "moduleId": item.get("moduleId") if isinstance(item.get("moduleId"), str) else None,
        "errorCode": err.fault.name,
        "errorStatus": err.message,
        "operation": operation if isinstance(operation, str) else None,
    }
