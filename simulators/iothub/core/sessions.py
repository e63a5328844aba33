"""MQTT sessions: what the hub remembers per client id, across connections.

The device SDK never cleans its session and never subscribes again, so subscriptions outlive a connection, and so do
QoS 1 deliveries that were not acknowledged (MQTT-4.4.0-1).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from simulators.iothub.core.ledger import forget
from simulators.iothub.core.registry import IdentityId

IN_FLIGHT_MAX = 100
PACKET_ID_MAX = 65_535

# Given by whoever owns the sockets; never used twice.
ConnectionId = int
T = TypeVar("T")


@dataclass(slots=True)
class Session(Generic[T]):
    """`T` is what is delivered; `in_flight` holds it by packet id until its PUBACK, oldest first."""

    identity_id: IdentityId
    is_clean: bool = False
    connection: ConnectionId | None = None
    subscriptions: dict[str, int] = field(default_factory=dict)
    in_flight: dict[int, T] = field(default_factory=dict)
    last_packet_id: int = 0

    def hears(self, feature: str) -> bool:
        """Whether a message of this feature would reach the client now."""
        return self.connection is not None and feature in self.subscriptions

    def take_off(self, delivery: T) -> int | None:
        """Start a QoS 1 delivery; returns its packet id, or None when the client owes too many PUBACKs."""
        if len(self.in_flight) >= IN_FLIGHT_MAX:
            return None
        packet_id = self.last_packet_id
        while (packet_id := packet_id % PACKET_ID_MAX + 1) in self.in_flight:
            pass
        self.last_packet_id = packet_id
        self.in_flight[packet_id] = delivery
        return packet_id

    def land(self, packet_id: int) -> T | None:
        """Take a PUBACK and return what it is for; one for an unknown packet id is a repetition and means nothing."""
        return self.in_flight.pop(packet_id, None)


@dataclass(frozen=True, slots=True)
class Opened(Generic[T]):
    """What opening a session found: the session, whether it was known, and the connection that it displaces."""

    session: Session[T]
    is_resumed: bool
    displaced: ConnectionId | None


class Sessions(Generic[T]):
    """All sessions of a hub, connected or not."""

    def __init__(self, touch: Callable[[str], None] = forget) -> None:
        self._touch = touch
        self._by_identity: dict[IdentityId, Session[T]] = {}
        self._connected = 0

    @property
    def connected_count(self) -> int:
        return self._connected

    def get(self, identity_id: IdentityId) -> Session[T] | None:
        return self._by_identity.get(identity_id)

    def open(self, identity_id: IdentityId, connection: ConnectionId, *, is_clean: bool) -> Opened[T]:
        """Attach a connection; a client id has one at a time, so an older connection is displaced (MQTT-3.1.4-2)."""
        known = self._by_identity.get(identity_id)
        displaced = known.connection if known else None
        is_resumed = known is not None and not is_clean and not known.is_clean
        session = known if known is not None and is_resumed else Session[T](identity_id, is_clean=is_clean)
        if displaced is None:
            self._connected += 1
        session.connection = connection
        self._by_identity[identity_id] = session
        if not is_resumed:
            self._touch(identity_id.client_id)
        return Opened(session, is_resumed, displaced)

    def close(self, identity_id: IdentityId, connection: ConnectionId) -> bool:
        """Detach a connection; returns False when another connection has taken the session over."""
        session = self._by_identity.get(identity_id)
        if session is None or session.connection != connection:
            return False
        session.connection = None
        self._connected -= 1
        if session.is_clean:
            del self._by_identity[identity_id]
        return True

    def subscribe(self, session: Session[T], feature: str, qos: int) -> None:
        session.subscriptions[feature] = qos
        self._touch(session.identity_id.client_id)

    def unsubscribe(self, session: Session[T], feature: str) -> None:
        if session.subscriptions.pop(feature, None) is not None:
            self._touch(session.identity_id.client_id)

    def record(self, key: str) -> Any | None:
        """A session's subscriptions as JSON. A clean session ends with its connection, so it is not kept."""
        session = self._by_identity.get(IdentityId.of_client(key))
        if session is None or session.is_clean:
            return None
        return {str(feature): qos for feature, qos in session.subscriptions.items()}

    def restore(self, key: str, record: Any) -> None:
        identity_id = IdentityId.of_client(key)
        self._by_identity[identity_id] = Session[T](identity_id, subscriptions=dict(record))

    def forget(self, identity_id: IdentityId) -> ConnectionId | None:
        """Drop a session for good; returns the connection it still had."""
        session = self._by_identity.pop(identity_id, None)
        self._touch(identity_id.client_id)
        if session is None or session.connection is None:
            return None
        self._connected -= 1
        return session.connection
