"""What the hub itself tells the built-in endpoint: changed twins, new and deleted identities, connections.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-messages-d2c#non-telemetry-events.
"""

from typing import Any

from simulators.iothub.core.events import CONNECTION_STATE, LIFECYCLE, TWIN_CHANGES, EventLog
from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.json_text import dump_json
from simulators.iothub.core.registry import Identity
from simulators.iothub.core.twins import Section, Twin, Values, read_update

SOURCES = (TWIN_CHANGES, LIFECYCLE, CONNECTION_STATE)
SCHEMAS = {
    TWIN_CHANGES: "twinChangeNotification",
    LIFECYCLE: "deviceLifecycleNotification",
    CONNECTION_STATE: "deviceConnectionStateNotification",
}


class HubEvents:
    """Writes the hub's own events into its log. `sources` may be changed at any time; others are not written."""

    def __init__(self, host_name: str, log: EventLog) -> None:
        self.sources = frozenset(SOURCES)
        self._hub_name = host_name.partition(".")[0] if not host_name[:1].isdigit() else host_name
        self._log = log
        self._connections = 0

    def created(self, identity: Identity, twin: Twin, now: float) -> None:
        self._lifecycle(identity, twin, "create", now)

    def deleted(self, identity: Identity, twin: Twin, now: float) -> None:
        self._lifecycle(identity, twin, "delete", now)

    def connected(self, identity: Identity, now: float) -> None:
        self._connection(identity, "Connected", now)

    def disconnected(self, identity: Identity, now: float) -> None:
        self._connection(identity, "Disconnected", now)

    def updated(self, identity: Identity, twin: Twin, body: Any, now: float) -> None:
        """A service has merged `body` into a twin."""
        if TWIN_CHANGES not in self.sources:
            return
        tags, desired = read_update(body)
        document: Values = {"version": twin.version}
        if tags is not None:
            document["tags"] = tags
        if desired is not None:
            document["properties"] = {"desired": _changed(desired, twin.desired)}
        self._append(TWIN_CHANGES, "updateTwin", identity, document, now)

    def replaced(self, identity: Identity, twin: Twin, now: float) -> None:
        """A service has replaced tags and desired properties."""
        document = {
            "version": twin.version,
            "tags": twin.tags,
            "properties": {"desired": twin.desired.document(), "reported": twin.reported.document()},
        }
        self._append(TWIN_CHANGES, "replaceTwin", identity, document, now)

    def reported(self, identity: Identity, twin: Twin, patch: Values, now: float) -> None:
        """A device has merged `patch` into its reported properties."""
        document = {"version": twin.version, "properties": {"reported": _changed(patch, twin.reported)}}
        self._append(TWIN_CHANGES, "updateTwin", identity, document, now)

    def _lifecycle(self, identity: Identity, twin: Twin, verb: str, now: float) -> None:
        module = {"moduleId": identity.id.module_id} if identity.id.module_id else {}
        document = {
            "deviceId": identity.id.device_id,
            **module,
            "etag": twin.etag,
            "version": twin.version,
            **({"tags": twin.tags} if twin.tags else {}),
            "properties": {"desired": twin.desired.document(), "reported": twin.reported.document()},
        }
        kind = "Module" if module else "Device"
        self._append(LIFECYCLE, f"{verb}{kind}Identity", identity, document, now)

    def _connection(self, identity: Identity, state: str, now: float) -> None:
        self._connections += 1
        # Later ones are larger as text too, also after a restart.
        number = f"{int(now * 1_000_000):032X}{self._connections:032X}"
        kind = "module" if identity.id.module_id else "device"
        self._append(CONNECTION_STATE, f"{kind}{state}", identity, {"sequenceNumber": number}, now)

    def _append(self, source: str, operation: str, identity: Identity, document: Values, now: float) -> None:
        if source not in self.sources:
            return
        module = {"moduleId": identity.id.module_id} if identity.id.module_id else {}
        properties = {
            "hubName": self._hub_name,
            "deviceId": identity.id.device_id,
            **module,
            "operationTimestamp": wire_time(now),
            "iothub-message-schema": SCHEMAS[source],
            "opType": operation,
        }
        system = {"contentType": "application/json", "contentEncoding": "utf-8", "userId": self._hub_name}
        body = dump_json(document)
        self._log.append(identity.id, identity.generation_id, system, properties, body, now, source)


def _changed(patch: Values, section: Section) -> Values:
    """A patch as it was issued, nulls kept, with the metadata of what it touched."""
    metadata = _metadata_of(patch, section.metadata)
    return {**patch, "$metadata": metadata, "$version": section.version}


def _metadata_of(patch: Values, metadata: Values) -> Values:
    stamps = {key: value for key, value in metadata.items() if key.startswith("$")}
    for key, value in patch.items():
        below = metadata.get(key)
        if isinstance(below, dict):
            stamps[key] = _metadata_of(value if isinstance(value, dict) else {}, below)
    return stamps
