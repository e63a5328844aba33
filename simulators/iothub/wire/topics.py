"""The topics of IoT Hub: what a device may say and hear, as values.

Source: https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-hub and what the device SDK sends.
"""

import enum
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from simulators.iothub.errors import ProtocolError

# System properties of a message by their key in a topic's property bag.
SYSTEM_PROPERTIES = {
    "$.mid": "messageId",
    "$.cid": "correlationId",
    "$.uid": "userId",
    "$.to": "to",
    "$.ct": "contentType",
    "$.ce": "contentEncoding",
    "$.on": "outputName",
    "$.ifid": "interfaceId",
    "$.exp": "expiryTimeUtc",
    "$.ctime": "creationTimeUtc",
    "$.sub": "componentName",
}


class Feature(enum.StrEnum):
    """What a client may subscribe to."""

    CLOUD_TO_DEVICE = "c2d"
    MODULE_INPUTS = "inputs"
    METHODS = "methods"
    TWIN_RESPONSES = "twinResponses"
    DESIRED_PATCHES = "desiredPatches"


@dataclass(frozen=True, slots=True)
class Login:
    """The user name of a CONNECT, taken apart. `parameters` holds api-version, DeviceClientType, model-id."""

    host_name: str
    device_id: str
    module_id: str
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def client_id(self) -> str:
        return f"{self.device_id}/{self.module_id}" if self.module_id else self.device_id


@dataclass(frozen=True, slots=True)
class ProvisioningLogin:
    """The user name of a device that comes to be provisioned."""

    id_scope: str
    registration_id: str


@dataclass(frozen=True, slots=True)
class Register:
    request_id: str


@dataclass(frozen=True, slots=True)
class OperationStatus:
    request_id: str
    operation_id: str


@dataclass(frozen=True, slots=True)
class Telemetry:
    device_id: str
    module_id: str
    system_properties: dict[str, str]
    properties: dict[str, str]


@dataclass(frozen=True, slots=True)
class TwinGet:
    request_id: str


@dataclass(frozen=True, slots=True)
class TwinPatch:
    request_id: str


@dataclass(frozen=True, slots=True)
class MethodAnswer:
    status: int
    request_id: str


Request = Telemetry | TwinGet | TwinPatch | MethodAnswer


def parse_login(username: str) -> Login:
    """Read ``{host}/{device}[/{module}]/?api-version=…``; older clients leave the question mark out."""
    host_name, _, rest = username.partition("/")
    path, question, query = rest.partition("/?")
    if not question:
        path, _, query = rest.rpartition("/")
        if not query.startswith("api-version="):
            path, query = rest, ""
    device_id, _, module_id = path.partition("/")
    if not host_name or not device_id or "/" in module_id:
        raise ProtocolError(f"user name {username!r} is not {{host}}/{{device}}[/{{module}}]/?api-version=…")
    return Login(host_name, device_id, module_id, parse_properties(query))


PROVISIONING_RESPONSES = "$dps/registrations/res/#"


def parse_provisioning_login(username: str) -> ProvisioningLogin | None:
    """Read ``{idScope}/registrations/{registrationId}/api-version=…``, without a question mark; None for any other."""
    match username.split("/", 3):
        case [id_scope, "registrations", registration_id, query] if (
            id_scope and registration_id and query.removeprefix("?").startswith("api-version=")
        ):
            return ProvisioningLogin(id_scope, unquote(registration_id))
    return None


def parse_provisioning_request(topic: str) -> Register | OperationStatus:
    """What a device asks of the provisioning service by publishing to `topic`.

    Raises:
        ProtocolError: no such topic; the connection is closed.
    """
    head, _, query = topic.partition("/?")
    parameters = parse_properties(query)
    request_id = parameters.get("$rid", "")
    if request_id and head == "$dps/registrations/PUT/iotdps-register":
        return Register(request_id)
    operation_id = parameters.get("operationId", "")
    if request_id and operation_id and head == "$dps/registrations/GET/iotdps-get-operationstatus":
        return OperationStatus(request_id, operation_id)
    raise ProtocolError(f"topic {topic!r} is none of the provisioning service's")


def provisioning_response_topic(status: int, request_id: str, retry_after_s: int | None = None) -> str:
    suffix = f"&retry-after={retry_after_s}" if retry_after_s is not None else ""
    return f"$dps/registrations/res/{status}/?$rid={quote(request_id, safe='')}{suffix}"


def feature_of(topic_filter: str, device_id: str, module_id: str) -> Feature | None:
    """The feature behind a filter, or None for a filter that the hub does not serve to this client."""
    device = f"devices/{device_id}"
    module = f"{device}/modules/{module_id}"
    filters = {
        "$iothub/methods/POST/#": Feature.METHODS,
        "$iothub/twin/res/#": Feature.TWIN_RESPONSES,
        "$iothub/twin/PATCH/properties/desired/#": Feature.DESIRED_PATCHES,
    }
    if module_id:
        filters[f"{module}/inputs/#"] = Feature.MODULE_INPUTS
    else:
        filters[f"{device}/messages/devicebound/#"] = Feature.CLOUD_TO_DEVICE
    return filters.get(topic_filter)


def parse_request(topic: str) -> Request:
    """What a device asks by publishing to `topic`.

    Raises:
        ProtocolError: no such topic; the hub closes the connection.
    """
    if topic.startswith("devices/"):
        return _telemetry(topic)
    head, _, query = topic.partition("/?")
    request_id = parse_properties(query).get("$rid", "")
    if not request_id:
        raise ProtocolError(f"topic {topic!r} is none of the hub's, or has no $rid")
    if head == "$iothub/twin/GET":
        return TwinGet(request_id)
    if head == "$iothub/twin/PATCH/properties/reported":
        return TwinPatch(request_id)
    prefix, _, status = head.rpartition("/")
    if prefix == "$iothub/methods/res" and _is_status(status):
        return MethodAnswer(int(status), request_id)
    raise ProtocolError(f"topic {topic!r} is none of the hub's")


def _is_status(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) <= 10


def _telemetry(topic: str) -> Telemetry:
    levels = topic.split("/", 6)
    match levels:
        case ["devices", device_id, "modules", module_id, "messages", "events", *bag]:
            pass
        case ["devices", device_id, "messages", "events", *bag]:
            module_id = ""
        case _:
            raise ProtocolError(f"topic {topic!r} is none of the hub's")
    pairs = parse_properties("/".join(bag).removesuffix("/").removeprefix("?"))
    system = {SYSTEM_PROPERTIES[key]: value for key, value in pairs.items() if key in SYSTEM_PROPERTIES}
    user = {key: value for key, value in pairs.items() if key not in SYSTEM_PROPERTIES}
    return Telemetry(device_id, module_id, system, user)


def parse_properties(bag: str) -> dict[str, str]:
    """Read ``key=value&key=value``, both sides percent-encoded; a key alone has an empty value."""
    properties = {}
    for pair in bag.split("&") if bag else ():
        key, _, value = pair.partition("=")
        properties[unquote(key)] = unquote(value)
    return properties


def format_properties(properties: dict[str, str]) -> str:
    """Write a property bag so that no key or value can end its topic level or its pair."""
    return "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in properties.items())


def cloud_message_topic(device_id: str, properties: dict[str, str]) -> str:
    return f"devices/{device_id}/messages/devicebound/{format_properties(properties)}"


def module_input_topic(device_id: str, module_id: str, name: str, properties: dict[str, str]) -> str:
    return f"devices/{device_id}/modules/{module_id}/inputs/{quote(name, safe='')}/{format_properties(properties)}"


def method_topic(name: str, request_id: str) -> str:
    return f"$iothub/methods/POST/{quote(name, safe='$')}/?$rid={quote(request_id, safe='')}"


def twin_response_topic(status: int, request_id: str, version: int | None = None) -> str:
    suffix = f"&$version={version}" if version is not None else ""
    return f"$iothub/twin/res/{status}/?$rid={quote(request_id, safe='')}{suffix}"


def desired_patch_topic(version: int) -> str:
    return f"$iothub/twin/PATCH/properties/desired/?$version={version}"
