"""Digital twins: a device twin seen through the conventions of IoT Plug and Play.

A component is an object marked with ``"__t": "c"``; a writable property is acknowledged by the device with an object of
``value``, ``ac``, ``av`` and ``ad``. Source: https://learn.microsoft.com/azure/iot/concepts-digital-twin and
https://learn.microsoft.com/azure/iot/concepts-convention.
"""

import re
from typing import Any

from simulators.iothub.core.desired_settings import patch_between, with_node, without_node
from simulators.iothub.core.query.expressions import Path
from simulators.iothub.core.twins import Twin, Values
from simulators.iothub.errors import Fault, ServiceError

OPERATIONS_MAX = 100
_MARK = "__t"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def digital_twin_document(device_id: str, twin: Twin) -> Values:
    """The digital twin as the REST API shows it."""
    desired, reported = twin.desired, twin.reported
    document, metadata = _shown(desired.values, desired.metadata, reported.values, reported.metadata)
    for name in _names(desired.values, reported.values):
        if _is_component(desired.values.get(name)) or _is_component(reported.values.get(name)):
            properties, below = _shown(
                _object(desired.values.get(name)),
                _object(desired.metadata.get(name)),
                _object(reported.values.get(name)),
                _object(reported.metadata.get(name)),
            )
            document[name] = {**properties, "$metadata": below}
    return {"$dtId": device_id, **document, "$metadata": {"$model": twin.model_id, **metadata}}


def desired_patch(twin: Twin, body: Any) -> Values:
    """The patch of desired properties that a JSON patch of the digital twin comes to.

    Raises:
        ServiceError: InvalidDigitalTwinJsonPatch, InvalidDigitalTwinPatchPath or InvalidDigitalTwinPatch.
    """
    if not isinstance(body, list) or not 1 <= len(body) <= OPERATIONS_MAX:
        raise ServiceError(
            Fault.InvalidDigitalTwinJsonPatch, f"the body is not a list of 1 to {OPERATIONS_MAX} operations"
        )
    before = wanted = twin.desired.values
    for operation in body:
        wanted = _operated(wanted, twin, operation)
    return patch_between(before, wanted)


def command_name(command: str, component: str = "") -> str:
    """The direct method that a command is; raises ServiceError ArgumentInvalid for a name that is none."""
    for name in (command, component or "root"):
        if not _NAME.fullmatch(name):
            raise ServiceError(Fault.ArgumentInvalid, f"{name!r} is not the name of a command or a component")
    return f"{component}*{command}" if component else command


def _shown(
    desired: Values, desired_metadata: Values, reported: Values, reported_metadata: Values
) -> tuple[Values, Values]:
    """The properties of a component or of the root, and what is to be said of each."""
    shown, metadata = {}, {}
    for name in _names(desired, reported):
        if _is_component(desired.get(name)) or _is_component(reported.get(name)):
            continue
        about: Values = {}
        if name in desired:
            about["desiredValue"] = desired[name]
            about["desiredVersion"] = desired_metadata.get(name, {}).get("$lastUpdatedVersion")
            about["lastUpdateTime"] = desired_metadata.get(name, {}).get("$lastUpdated")
        if name in reported:
            value = reported[name]
            if _is_acknowledgement(value):
                about |= {to: value[of] for of, to in _ACKNOWLEDGED.items() if of in value}
                value = value["value"]
            shown[name] = value
            about["lastUpdateTime"] = reported_metadata.get(name, {}).get("$lastUpdated")
        metadata[name] = about
    return shown, metadata


_ACKNOWLEDGED = {"av": "ackVersion", "ac": "ackCode", "ad": "ackDescription"}


def _is_acknowledgement(value: Any) -> bool:
    return isinstance(value, dict) and "value" in value and "ac" in value and "av" in value


def _is_component(value: Any) -> bool:
    return isinstance(value, dict) and value.get(_MARK) == "c"


def _names(*trees: Values) -> list[str]:
    return [name for name in dict.fromkeys(name for tree in trees for name in tree) if name != _MARK]


def _object(value: Any) -> Values:
    return value if isinstance(value, dict) else {}


def _operated(wanted: Values, twin: Twin, operation: Any) -> Values:
    if not isinstance(operation, dict) or operation.get("op") not in ("add", "replace", "remove"):
        raise ServiceError(Fault.InvalidDigitalTwinJsonPatch, "an operation is add, replace or remove, with a path")
    path = _path(operation.get("path"))
    if operation["op"] == "remove":
        if not _has(wanted, path):
            raise ServiceError(Fault.InvalidDigitalTwinPatchPath, f"there is nothing at {operation['path']} to remove")
        return without_node(wanted, path)
    if operation.get("value") is None:
        raise ServiceError(Fault.InvalidDigitalTwinPatch, f"the operation on {operation['path']} has no value")
    value = operation["value"]
    if len(path) == 1 and isinstance(value, dict) and "$metadata" in value:
        # This is how a component is told from a property that is an object.
        return with_node(wanted, path, {_MARK: "c"} | {key: item for key, item in value.items() if key != "$metadata"})
    if len(path) > 1 and _names_component(path[0], wanted, twin):
        wanted = with_node(wanted, (path[0], _MARK), "c")
    return with_node(wanted, path, value)


def _has(tree: Values, path: Path) -> bool:
    for name in path:
        if not isinstance(tree, dict) or name not in tree:
            return False
        tree = tree[name]
    return True


def _names_component(name: str, wanted: Values, twin: Twin) -> bool:
    """Whether what is below a name belongs to a component; without the model only known properties say otherwise."""
    known = [tree[name] for tree in (wanted, twin.reported.values) if name in tree]
    return not known or any(map(_is_component, known))


def _path(pointer: Any) -> Path:
    """A JSON pointer (RFC 6901) to a property or a component."""
    names = pointer.split("/") if isinstance(pointer, str) else []
    path = tuple(name.replace("~1", "/").replace("~0", "~") for name in names[1:])
    if len(names) < 2 or names[0] or not all(_NAME.fullmatch(name) and name != _MARK for name in path):
        raise ServiceError(
            Fault.InvalidDigitalTwinPatchPath, f"{pointer!r} is not the path of a property or a component"
        )
    return path
