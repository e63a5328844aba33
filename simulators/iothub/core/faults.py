"""Faults on demand: what is to go wrong in the hub, for whom, how often and for how long.

Whoever serves devices and callers asks at named points (`strike`) whether a fault is planted there, and brings it
about. Knows when and whom a fault strikes; knows nothing of connections and requests. Chance is passed in.
"""

import enum
import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulators.iothub.core.registry import IdentityId
from simulators.iothub.core.sessions import ConnectionId
from simulators.iothub.errors import Fault, ServiceError

PLANTED_MAX = 1000
ORDERS_MAX = 10_000
DURATION_S_MAX = 86_400.0
COUNT_MAX = 1_000_000
# https://github.com/Azure/azure-iot-sdk-csharp, its end-to-end tests: messages with these properties ask the service
# itself for a fault.
OPERATION_TYPE = "AzIoTHub_FaultOperationType"
CLOSE_REASON = "AzIoTHub_FaultOperationCloseReason"
DELAY_S = "AzIoTHub_FaultOperationDelayInSecs"
# Whether the connection is told before it ends.
_OPERATIONS = {"KillTcp": False, "ShutDownMqtt": True}


class Point(enum.Enum):
    """Where the hub asks whether something is to go wrong."""

    CONNECT = "a device connects"
    CONNECTION = "bytes come on the open connection of a device; also at once when the fault is planted"
    PUBLISH = "a device publishes"
    PUBACK = "a publish is acknowledged"
    ANSWER = "an acknowledgement or a twin answer leaves"
    CLOUD_MESSAGE = "a message is sent to a device"
    DESIRED = "a desired patch is sent to a device"
    REQUEST = "a request comes over HTTPS, or a message for a device over AMQP"
    RESPONSE = "a request over HTTPS has been carried out"
    AMQP_CONNECTION = "once, when the fault is planted: each AMQP connection"
    INDEX = "a query is answered"


@dataclass(frozen=True, slots=True)
class Kind:
    """A fault that can be planted. `value` is what it needs besides, with its default and what is allowed."""

    point: Point
    does: str
    value: str = ""
    default: float = 0.0
    allowed: Callable[[float], bool] = lambda _value: True
    allows: str = ""


# What a request is refused with, by its status.
ERRORS = {
    429: Fault.ThrottlingException,
    500: Fault.ServerError,
    503: Fault.ServiceUnavailable,
    504: Fault.GatewayTimeout,
}


def _is_delay(value: float) -> bool:
    return 0 < value <= 3600


KINDS = {
    "refuse": Kind(
        Point.CONNECT, "CONNECT is refused", "CONNACK code", 3, lambda code: code in (1, 2, 3, 4, 5), "1 to 5"
    ),
    "kill": Kind(Point.CONNECTION, "the connection breaks without a word"),
    "expire-token": Kind(Point.CONNECTION, "the connection is closed as at the end of its token"),
    "drop": Kind(Point.PUBLISH, "what the device publishes is lost on its way: not handled, not acknowledged"),
    "withhold-puback": Kind(Point.PUBACK, "what the device publishes is handled and not acknowledged"),
    "delay": Kind(Point.ANSWER, "acknowledgements and twin answers leave late", "seconds", 1, _is_delay, "up to 3600"),
    "duplicate-message": Kind(Point.CLOUD_MESSAGE, "a cloud-to-device message arrives twice"),
    "lose-message": Kind(Point.CLOUD_MESSAGE, "a cloud-to-device message gets lost until the device connects anew"),
    "lose-desired": Kind(Point.DESIRED, "a desired patch gets lost; the twin has it"),
    "error": Kind(
        Point.REQUEST,
        "a request is refused before anything is done",
        "HTTP status",
        500,
        lambda status: status in ERRORS,
        "429, 500, 503 or 504",
    ),
    "late-error": Kind(
        Point.RESPONSE,
        "a request is carried out and answered with an error all the same",
        "HTTP status",
        500,
        lambda status: status in ERRORS,
        "429, 500, 503 or 504",
    ),
    "slow": Kind(Point.REQUEST, "a request is handled late", "seconds", 1, _is_delay, "up to 3600"),
    "kill-amqp": Kind(Point.AMQP_CONNECTION, "the AMQP connections of service programs break without a word"),
    "lag": Kind(Point.INDEX, "queries see changes late", "seconds", 5, _is_delay, "up to 3600"),
}
# These are for the whole hub; to count them, or to toss a coin over them, makes no sense.
_FOR_ALL = ("lag", "kill-amqp")


@dataclass(slots=True)
class PlantedFault:
    """A fault in its place. `count` strikes are left, or any number (None); `ends_at` is None where no time ends it."""

    fault_id: str
    kind: str
    device_id: str
    module_id: str
    count: int | None
    ends_at: float | None
    probability: float
    value: float
    struck: int = 0

    def is_for(self, identity_id: IdentityId | None) -> bool:
        """Whether it strikes this device or module; a fault for a device strikes its modules too."""
        if not self.device_id:
            return True
        if identity_id is None or identity_id.device_id != self.device_id:
            return False
        return not self.module_id or identity_id.module_id == self.module_id

    def is_over(self, now: float) -> bool:
        return self.count == 0 or (self.ends_at is not None and now >= self.ends_at)

    def document(self, now: float) -> dict[str, Any]:
        return {
            "id": self.fault_id,
            "kind": self.kind,
            "deviceId": self.device_id or None,
            "moduleId": self.module_id or None,
            "countLeft": self.count,
            "secondsLeft": None if self.ends_at is None else max(0.0, round(self.ends_at - now, 3)),
            "probability": self.probability,
            "value": self.value if KINDS[self.kind].value else None,
            "struck": self.struck,
        }


@dataclass(frozen=True, slots=True)
class Order:
    """A connection that is to end; `reason` is None where it breaks without a word."""

    connection: ConnectionId
    reason: str | None


class Faults:
    """What is planted, and what a message has asked for.

    Args:
        chance: a number from 0 to below 1, a new one each time.
        identifier: a new id each time.
        set_lag: makes queries see changes so many seconds late.
    """

    def __init__(
        self, chance: Callable[[], float], identifier: Callable[[], str], set_lag: Callable[[float], None]
    ) -> None:
        self._chance, self._identifier, self._set_lag = chance, identifier, set_lag
        # By id, in the order of planting. Where nothing is planted nobody need ask further, which keeps that cheap.
        self.planted: dict[str, PlantedFault] = {}
        self._orders: list[tuple[float, int, Order]] = []
        self._order_count = 0
        self._is_lagging = False

    def plant(self, document: Any, now: float) -> PlantedFault:
        """Plant what a document asks for: kind, deviceId, moduleId, count, durationInSeconds, probability, value.

        Without a count and a duration it strikes once, a lag until it is cleared.

        Raises:
            ServiceError: ArgumentInvalid.
        """
        self._drop_over(now)
        if len(self.planted) >= PLANTED_MAX:
            raise ServiceError(Fault.ArgumentInvalid, f"{PLANTED_MAX} faults are planted; clear some")
        fault = _read(document, self._identifier(), now)
        self.planted[fault.fault_id] = fault
        self._see_lag()
        return fault

    def documents(self, now: float) -> list[dict[str, Any]]:
        self._drop_over(now)
        return [fault.document(now) for fault in self.planted.values()]

    def clear(self, fault_id: str | None = None) -> int:
        """Take a fault away, or all; returns how many there were.

        Raises:
            ServiceError: FaultNotFound.
        """
        if fault_id is None:
            count = len(self.planted)
            self.planted.clear()
        elif self.planted.pop(fault_id, None) is None:
            raise ServiceError(Fault.FaultNotFound, f"no fault {fault_id!r:.80} is planted; it may be used up")
        else:
            count = 1
        self._see_lag()
        return count

    def strike(self, point: Point, identity_id: IdentityId | None, now: float) -> PlantedFault | None:
        """The fault that strikes at a point now, the first that was planted before others; it counts as struck."""
        if not self.planted:
            return None
        for fault in self.planted.values():
            if KINDS[fault.kind].point is not point or fault.is_over(now) or not fault.is_for(identity_id):
                continue
            if fault.probability < 1 and self._chance() >= fault.probability:
                continue
            fault.struck += 1
            if fault.count is not None:
                fault.count -= 1
                if not fault.count:
                    del self.planted[fault.fault_id]
            return fault
        return None

    def delay_s(self, identity_id: IdentityId | None, now: float) -> float:
        """How much later an answer to a device leaves."""
        fault = self.strike(Point.ANSWER, identity_id, now)
        return fault.value if fault else 0.0

    def obey(self, connection: ConnectionId, properties: dict[str, str], now: float) -> None:
        """Do what a device's own message asks for, as the service does for its SDKs' tests."""
        is_told = _OPERATIONS.get(properties.get(OPERATION_TYPE, ""))
        if is_told is None or len(self._orders) >= ORDERS_MAX:
            return
        reason = properties.get(CLOSE_REASON, "") or "a message asked for it"
        self._order_count += 1
        order = Order(connection, reason[:200] if is_told else None)
        heapq.heappush(self._orders, (now + _read_delay(properties.get(DELAY_S, "")), self._order_count, order))

    def due(self, now: float) -> list[Order]:
        """What is to be done by now; asked for again, it is empty. Faults whose time is over end here."""
        if self.planted:
            self._drop_over(now)
        orders = []
        while self._orders and self._orders[0][0] <= now:
            orders.append(heapq.heappop(self._orders)[2])
        return orders

    def _drop_over(self, now: float) -> None:
        for fault in [fault for fault in self.planted.values() if fault.is_over(now)]:
            del self.planted[fault.fault_id]
        self._see_lag()

    def _see_lag(self) -> None:
        lag_s = max((fault.value for fault in self.planted.values() if fault.kind == "lag"), default=0.0)
        if lag_s or self._is_lagging:
            self._is_lagging = bool(lag_s)
            self._set_lag(lag_s)


def error_of(fault: PlantedFault) -> ServiceError:
    """What a request is refused with that a fault strikes."""
    return ServiceError(ERRORS[int(fault.value)], f"fault {fault.fault_id} was planted ({fault.kind})")


def _read(document: Any, fault_id: str, now: float) -> PlantedFault:
    if not isinstance(document, dict):
        raise ServiceError(Fault.ArgumentInvalid, "a fault is a JSON object")
    name = document.get("kind")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None or not isinstance(name, str):
        raise ServiceError(Fault.ArgumentInvalid, f"kind is {name!r:.80}; there are {', '.join(KINDS)}")
    count = _number(document, "count", lambda value: value == int(value) and 1 <= value <= COUNT_MAX, "a whole number")
    duration_s = _number(document, "durationInSeconds", lambda value: 0 < value <= DURATION_S_MAX, "up to a day")
    probability = _number(document, "probability", lambda value: 0 < value <= 1, "above 0 and at most 1")
    value = _number(document, "value", kind.allowed, f"{kind.value}, {kind.allows}")
    if value is not None and not kind.value:
        raise ServiceError(Fault.ArgumentInvalid, f"{name} has no value")
    device_id, module_id = _text(document, "deviceId"), _text(document, "moduleId")
    if module_id and not device_id:
        raise ServiceError(Fault.ArgumentInvalid, "moduleId goes with deviceId")
    if name in _FOR_ALL and (device_id or count or probability):
        raise ServiceError(Fault.ArgumentInvalid, f"{name} is for the whole hub: without device, count and probability")
    if name == "kill-amqp" or (count is None and duration_s is None and name != "lag"):
        count = 1
    return PlantedFault(
        fault_id=fault_id,
        kind=name,
        device_id=device_id,
        module_id=module_id,
        count=None if count is None else int(count),
        ends_at=None if duration_s is None else now + duration_s,
        probability=1.0 if probability is None else probability,
        value=kind.default if value is None else value,
    )


def _number(document: dict[str, Any], name: str, is_allowed: Callable[[float], bool], allowed: str) -> float | None:
    value = document.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e9 or not math.isfinite(value):
        raise ServiceError(Fault.ArgumentInvalid, f"{name} is {value!r:.80}; a number is expected")
    if not is_allowed(value):
        raise ServiceError(Fault.ArgumentInvalid, f"{name} is {value!r:.80}; allowed is {allowed}")
    return float(value)


def _text(document: dict[str, Any], name: str) -> str:
    value = document.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or not 1 <= len(value) <= 128:
        raise ServiceError(Fault.ArgumentInvalid, f"{name} is {value!r:.80}; an id is expected")
    return value


def _read_delay(text: str) -> float:
    return min(float(text), DURATION_S_MAX) if text.isascii() and text.isdigit() and len(text) < 9 else 0.0
