"""What goes wrong in the hub, by who is at fault: a peer's bytes, a caller's request, or this machine.

Service errors carry the numbers, symbolic codes and reason phrases of the service, because its SDKs read them:
https://learn.microsoft.com/azure/iot-hub/troubleshoot-error-codes.
"""

import enum
from dataclasses import dataclass
from typing import Any


class ProtocolError(Exception):
    """The bytes of a peer break the rules of its protocol; the only answer is to close the connection.

    `decoded` holds what was complete before the fault, so that a peer is judged alike however its bytes were cut.
    """

    def __init__(self, message: str, decoded: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.decoded = decoded


class UnsupportedProtocolLevelError(ProtocolError):
    """A CONNECT of another MQTT version: refused with CONNACK 1 before closing (MQTT-3.1.2-2)."""


class HubStartError(Exception):
    """The hub cannot serve on this machine: `hint` says what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class StorageError(Exception):
    """The state of the hub cannot be written: what depends on it may not be promised to anybody."""


@dataclass(frozen=True, slots=True)
class FaultKind:
    """One entry of the service's error list: number, HTTP status, and the reason phrase that SDKs show."""

    number: int
    status: int
    reason: str


class Fault(enum.Enum):
    """The service's symbolic error codes; the member's name is the code."""

    ArgumentInvalid = FaultKind(400004, 400, "Bad Request")
    ArgumentNull = FaultKind(400005, 400, "Bad Request")
    DeviceDefinedMultipleTimes = FaultKind(400011, 400, "Bad Request")
    InvalidConfigurationTargetCondition = FaultKind(400303, 400, "Bad Request")
    InvalidConfigurationContent = FaultKind(400304, 400, "Bad Request")
    CannotModifyImmutableConfigurationContent = FaultKind(400305, 400, "Bad Request")
    InvalidConfigurationCustomMetricsQuery = FaultKind(400306, 400, "Bad Request")
    InvalidDigitalTwinJsonPatch = FaultKind(400403, 400, "Bad Request")
    InvalidDigitalTwinPatch = FaultKind(400405, 400, "Bad Request")
    InvalidDigitalTwinPatchPath = FaultKind(400406, 400, "Bad Request")
    InvalidContentEncodingOrType = FaultKind(400103, 400, "Bad Request")
    IotHubUnauthorizedAccess = FaultKind(401002, 401, "Unauthorized")
    IotHubUnauthorized = FaultKind(401003, 401, "Unauthorized")
    IotHubQuotaExceeded = FaultKind(403002, 403, "Forbidden")
    DeviceMaximumQueueDepthExceeded = FaultKind(403004, 403, "Forbidden")
    DeviceMaximumActiveFileUploadLimitExceeded = FaultKind(403006, 403, "Forbidden")
    DeviceNotFound = FaultKind(404001, 404, "Not Found")
    ModuleNotFound = FaultKind(404010, 404, "Not Found")
    JobQuotaExceeded = FaultKind(403003, 403, "Forbidden")
    JobNotFound = FaultKind(404002, 404, "Not Found")
    ConfigurationNotFound = FaultKind(404205, 404, "Not Found")
    CertificateNotFound = FaultKind(404020, 404, "Not Found")
    # Of the provisioning service, whose numbers are not documented in full.
    EnrollmentNotFound = FaultKind(404201, 404, "Not Found")
    RegistrationNotFound = FaultKind(404202, 404, "Not Found")
    OperationNotFound = FaultKind(404203, 404, "Not Found")
    EnrollmentAlreadyExists = FaultKind(409201, 409, "Conflict")
    # Of the simulator itself.
    FaultNotFound = FaultKind(404900, 404, "Not Found")
    RouteNotFound = FaultKind(404000, 404, "Not Found")
    DeviceNotOnline = FaultKind(404103, 404, "Not Found")
    DeviceConnectionClosedRemotely = FaultKind(404104, 404, "Not Found")
    MethodNotAllowed = FaultKind(405001, 405, "Method Not Allowed")
    DeviceAlreadyExists = FaultKind(409001, 409, "Conflict")
    JobAlreadyExists = FaultKind(409006, 409, "Conflict")
    ConfigurationAlreadyExists = FaultKind(409302, 409, "Conflict")
    ModuleAlreadyExistsOnDevice = FaultKind(409301, 409, "Conflict")
    PreconditionFailed = FaultKind(412001, 412, "Precondition Failed")
    DeviceMessageLockLost = FaultKind(412002, 412, "Precondition Failed")
    MessageTooLarge = FaultKind(413001, 413, "Request Entity Too Large")
    TooManyModulesOnDevice = FaultKind(413005, 413, "Request Entity Too Large")
    ConfigurationCountLimitExceeded = FaultKind(413006, 413, "Request Entity Too Large")
    ThrottlingMaxActiveJobCountExceeded = FaultKind(429003, 429, "Too Many Requests")
    ThrottlingException = FaultKind(429001, 429, "Too Many Requests")
    ServerError = FaultKind(500001, 500, "Internal Server Error")
    ServiceUnavailable = FaultKind(503001, 503, "Service Unavailable")
    GatewayTimeout = FaultKind(504101, 504, "Gateway Timeout")


class ServiceError(Exception):
    """A request that the hub refuses, as the service would say it."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message

    @property
    def status(self) -> int:
        return self.fault.value.status

    @property
    def reason(self) -> str:
        return self.fault.value.reason

    def body(self, tracking_id: str, timestamp: str) -> dict[str, Any]:
        """The JSON body of the HTTP answer, in the shape that api-version 2021-04-12 gives."""
        return {
            "Message": f"ErrorCode:{self.fault.name};{self.message}",
            "ExceptionMessage": f"Tracking ID:{tracking_id}-TimeStamp:{timestamp}",
        }

    def device_body(self, tracking_id: str, timestamp: str) -> dict[str, Any]:
        """The JSON body of a refused twin request over MQTT."""
        return {
            "errorCode": self.fault.value.number,
            "trackingId": tracking_id,
            "message": self.message,
            "timestampUtc": timestamp,
        }
