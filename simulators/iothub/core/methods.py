"""Direct methods: calls that wait for a device's answer, or for the device.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-direct-methods.
"""

import re
from dataclasses import dataclass
from typing import Any

from simulators.iothub.core.json_text import dump_json, parse_json
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import Fault, ServiceError

PAYLOAD_BYTES_MAX = 128 * 1024
RESPONSE_TIMEOUT_S_DEFAULT, RESPONSE_TIMEOUT_S_MIN, RESPONSE_TIMEOUT_S_MAX = 30, 5, 300
CONNECT_TIMEOUT_S_MAX = 300
_NAME = re.compile(r"[\w.\-*$@!:()=?,;%+~]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class MethodRequest:
    """What a service asks: `payload` is JSON text, as the device will get it."""

    name: str
    payload: bytes
    response_timeout_s: int
    connect_timeout_s: int

    @classmethod
    def read(cls, body: Any) -> "MethodRequest":
        """Read the body of a REST call; raises ServiceError ArgumentInvalid or MessageTooLarge."""
        if not isinstance(body, dict) or not isinstance(body.get("methodName"), str):
            raise ServiceError(Fault.ArgumentInvalid, "the body has no methodName")
        if not _NAME.fullmatch(body["methodName"]):
            raise ServiceError(Fault.ArgumentInvalid, f"{body['methodName']!r} is not a method name")
        payload = dump_json(body.get("payload"))
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise ServiceError(
                Fault.MessageTooLarge, f"the payload is {len(payload)} bytes; {PAYLOAD_BYTES_MAX} are allowed"
            )
        return cls(
            body["methodName"],
            payload,
            _seconds(
                body,
                "responseTimeoutInSeconds",
                RESPONSE_TIMEOUT_S_DEFAULT,
                RESPONSE_TIMEOUT_S_MIN,
                RESPONSE_TIMEOUT_S_MAX,
            ),
            _seconds(body, "connectTimeoutInSeconds", 0, 0, CONNECT_TIMEOUT_S_MAX),
        )


@dataclass(frozen=True, slots=True)
class MethodResult:
    """How a call ended: the device's status and payload, or the error to give."""

    request_id: str
    status: int = 0
    payload: Any = None
    error: ServiceError | None = None

    def document(self) -> dict[str, Any]:
        return {"status": self.status, "payload": self.payload}


@dataclass(slots=True)
class _Call:
    identity_id: IdentityId
    request: MethodRequest
    deadline: float
    is_sent: bool = False


class MethodCalls:
    """The calls that have not ended, by request id."""

    def __init__(self) -> None:
        self._calls: dict[str, _Call] = {}

    def __len__(self) -> int:
        return len(self._calls)

    def start(self, request_id: str, identity_id: IdentityId, request: MethodRequest, now: float) -> None:
        """Note a call that waits for its device to connect and subscribe."""
        self._calls[request_id] = _Call(identity_id, request, now + request.connect_timeout_s)

    def send(self, request_id: str, now: float) -> MethodRequest:
        """Note that a call goes out now, and from now on waits for the answer."""
        call = self._calls[request_id]
        call.is_sent = True
        call.deadline = now + call.request.response_timeout_s
        return call.request

    def waiting_for(self, identity_id: IdentityId) -> list[str]:
        """Calls that the device has not been sent yet, oldest first."""
        return [key for key, call in self._calls.items() if call.identity_id == identity_id and not call.is_sent]

    def answer(self, request_id: str, identity_id: IdentityId, status: int, payload: bytes) -> MethodResult | None:
        """Take a device's answer; None where no such call waits on this device: it timed out, or is a repetition."""
        call = self._calls.get(request_id)
        if call is None or call.identity_id != identity_id or not call.is_sent:
            return None
        del self._calls[request_id]
        if len(payload) > PAYLOAD_BYTES_MAX:
            error = ServiceError(Fault.MessageTooLarge, f"the device answered with {len(payload)} bytes")
            return MethodResult(request_id, error=error)
        try:
            return MethodResult(request_id, status, parse_json(payload, "the device's answer") if payload else None)
        except ServiceError as err:
            return MethodResult(request_id, error=err)

    def disconnected(self, identity_id: IdentityId) -> list[MethodResult]:
        """End the calls that a device will not answer any more, since its connection is gone."""
        lost = [key for key, call in self._calls.items() if call.identity_id == identity_id and call.is_sent]
        for key in lost:
            del self._calls[key]
        error = ServiceError(
            Fault.DeviceConnectionClosedRemotely, f"{identity_id.client_id} disconnected before it answered"
        )
        return [MethodResult(key, error=error) for key in lost]

    def expire(self, now: float) -> list[MethodResult]:
        """End the calls whose time is over."""
        return [self._expired(key) for key in [key for key, call in self._calls.items() if call.deadline <= now]]

    def next_deadline(self) -> float | None:
        return min((call.deadline for call in self._calls.values()), default=None)

    def _expired(self, request_id: str) -> MethodResult:
        call = self._calls.pop(request_id)
        if call.is_sent:
            waited_s = call.request.response_timeout_s
            message = f"{call.identity_id.client_id} did not answer {call.request.name} in {waited_s} s"
            return MethodResult(request_id, error=ServiceError(Fault.GatewayTimeout, message))
        return MethodResult(request_id, error=not_online(call.identity_id))


def not_online(identity_id: IdentityId) -> ServiceError:
    return ServiceError(
        Fault.DeviceNotOnline, f"{identity_id.client_id} is not connected, or does not listen for methods"
    )


def _seconds(body: dict[str, Any], key: str, default: int, least: int, most: int) -> int:
    value = body.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ServiceError(Fault.ArgumentInvalid, f"{key} is {value!r}; {least} to {most} are allowed")
    return value
