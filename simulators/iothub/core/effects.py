"""What the hub asks of whoever owns the connections, after a call has changed it."""

from dataclasses import dataclass

from simulators.iothub.core.cloud_to_device import CloudMessage
from simulators.iothub.core.methods import MethodResult
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.core.sessions import ConnectionId


@dataclass(frozen=True, slots=True)
class DesiredPatch:
    """A change of desired properties as the device hears of it; the body carries ``$version`` too."""

    version: int
    body: bytes


@dataclass(frozen=True, slots=True)
class SendDesired:
    """Publish a desired patch; `packet_id` is None at QoS 0."""

    connection: ConnectionId
    patch: DesiredPatch
    packet_id: int | None
    is_duplicate: bool = False


@dataclass(frozen=True, slots=True)
class CloudDelivery:
    """A cloud-to-device message on its way: the device's PUBACK completes it."""

    sequence: int
    lock_token: str


@dataclass(frozen=True, slots=True)
class InputMessage:
    """A message for an input of a module, its properties as the module gets them."""

    name: str
    properties: dict[str, str]
    body: bytes


# What is under way to a client until its PUBACK.
InFlight = DesiredPatch | CloudDelivery | InputMessage


@dataclass(frozen=True, slots=True)
class SendCloudMessage:
    """Publish a cloud-to-device message; `packet_id` is None at QoS 0."""

    connection: ConnectionId
    device_id: str
    message: CloudMessage
    packet_id: int | None
    is_duplicate: bool = False


@dataclass(frozen=True, slots=True)
class SendInput:
    """Publish a message to a module's input; `packet_id` is None at QoS 0."""

    connection: ConnectionId
    identity_id: IdentityId
    message: InputMessage
    packet_id: int | None
    is_duplicate: bool = False


@dataclass(frozen=True, slots=True)
class SendMethod:
    connection: ConnectionId
    request_id: str
    name: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class EndMethod:
    """Give whoever invoked a method its result."""

    result: MethodResult


@dataclass(frozen=True, slots=True)
class RunExchange:
    """Carry out an import or export of the registry."""

    job_id: str


@dataclass(frozen=True, slots=True)
class SendLater:
    """Write bytes to a connection when an instant has come, if it is still open then."""

    connection: ConnectionId
    due_at: float
    data: bytes


@dataclass(frozen=True, slots=True)
class CloseConnection:
    connection: ConnectionId
    reason: str


Effect = SendDesired | SendCloudMessage | SendInput | SendMethod | SendLater | EndMethod | CloseConnection | RunExchange
