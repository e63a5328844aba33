"""The client half of MQTT 3.1.1: a session without a socket, for tests, benchmarks and simulated fleets.

Handles: the order of packets, packet identifiers, QoS 0 and 1 both ways, re-sending after a reconnect. Leaves to the
caller: bytes in and out, when to ping, when to give up. QoS 2 is not spoken: IoT Hub has none.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from simulators.iothub.errors import ProtocolError
from simulators.iothub.wire.decoding import Decoder
from simulators.iothub.wire.encoding import encode
from simulators.iothub.wire.packets import (
    SUBACK_FAILURE,
    Connack,
    ConnackCode,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
)

PACKET_ID_MAX = 65_535


class ClientState(enum.Enum):
    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"


@dataclass(frozen=True, slots=True)
class Connected:
    is_session_present: bool


@dataclass(frozen=True, slots=True)
class Refused:
    code: ConnackCode


@dataclass(frozen=True, slots=True)
class Subscribed:
    """`granted` holds a QoS per filter, None where the server refused."""

    packet_id: int
    granted: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    packet_id: int


@dataclass(frozen=True, slots=True)
class Published:
    """A message of QoS 1 has arrived at the server."""

    packet_id: int


@dataclass(frozen=True, slots=True)
class Received:
    """A message from the server; at QoS 1 its PUBACK is among the bytes to send already."""

    topic: str
    payload: bytes
    qos: int
    is_duplicate: bool


@dataclass(frozen=True, slots=True)
class PingAnswered:
    pass


Event = Connected | Refused | Subscribed | Unsubscribed | Published | Received | PingAnswered


class ClientSession:
    """One client id's session. It outlives connections: call `connect` again after `connection_lost`."""

    def __init__(self) -> None:
        self.state = ClientState.DISCONNECTED
        self._decoder = Decoder()
        self._outgoing = bytearray()
        self._in_flight: dict[int, Publish] = {}
        self._awaited: dict[int, type] = {}
        self._last_packet_id = 0

    @property
    def in_flight_count(self) -> int:
        """Messages of QoS 1 that the server has not acknowledged."""
        return len(self._in_flight)

    def data_to_send(self) -> bytes:
        """Take the bytes that go to the server next."""
        data = bytes(self._outgoing)
        self._outgoing.clear()
        return data

    def connect(self, packet: Connect) -> None:
        """Open the session on a fresh connection."""
        self._require(ClientState.DISCONNECTED)
        self._decoder = Decoder()
        self._outgoing.clear()
        self._awaited.clear()
        if packet.clean_session:
            self._in_flight.clear()
        self.state = ClientState.CONNECTING
        self._send(packet)

    def connection_lost(self) -> None:
        """The connection is gone; unacknowledged messages wait for the next."""
        self.state = ClientState.DISCONNECTED

    def disconnect(self) -> None:
        self._require(ClientState.CONNECTED)
        self._send(Disconnect())
        self.state = ClientState.DISCONNECTED

    def publish(self, topic: str, payload: bytes, qos: int = 1) -> int | None:
        """Send a message; returns its packet id, which `Published` will repeat, or None at QoS 0."""
        self._require(ClientState.CONNECTED)
        if qos == 0:
            self._send(Publish(topic=topic, payload=payload))
            return None
        if qos != 1:
            raise ProtocolError(f"this client speaks QoS 0 and 1, not {qos}")
        packet = Publish(topic=topic, payload=payload, qos=1, packet_id=self._next_packet_id())
        self._send(packet)
        self._in_flight[self._last_packet_id] = packet
        return packet.packet_id

    def subscribe(self, *filters: tuple[str, int]) -> int:
        """Ask for topic filters; returns the packet id that `Subscribed` will repeat."""
        self._require(ClientState.CONNECTED)
        packet_id = self._next_packet_id()
        self._send(Subscribe(packet_id=packet_id, filters=filters))
        self._awaited[packet_id] = Suback
        return packet_id

    def unsubscribe(self, *filters: str) -> int:
        self._require(ClientState.CONNECTED)
        packet_id = self._next_packet_id()
        self._send(Unsubscribe(packet_id=packet_id, filters=filters))
        self._awaited[packet_id] = Unsuback
        return packet_id

    def ping(self) -> None:
        self._require(ClientState.CONNECTED)
        self._send(Pingreq())

    def receive(self, data: bytes) -> list[Event]:
        """Take bytes from the server and return what they mean.

        Raises:
            ProtocolError: the server broke a rule; close the connection.
        """
        events = []
        for packet in self._decoder.feed(data):
            handler = TRANSITIONS.get((self.state, type(packet)))
            if handler is None:
                raise ProtocolError(f"the server sent {type(packet).__name__} while this client was {self.state.value}")
            events.append(handler(self, packet))
        return events

    def _require(self, state: ClientState) -> None:
        if self.state is not state:
            raise RuntimeError(f"this needs a session that is {state.value}; it is {self.state.value}")

    def _send(self, packet: Packet) -> None:
        self._outgoing += encode(packet)

    def _next_packet_id(self) -> int:
        for _ in range(PACKET_ID_MAX):
            self._last_packet_id = self._last_packet_id % PACKET_ID_MAX + 1
            if self._last_packet_id not in self._in_flight and self._last_packet_id not in self._awaited:
                return self._last_packet_id
        raise RuntimeError("all packet identifiers are in flight; wait for acknowledgements")

    def _connack(self, packet: Connack) -> Event:
        if packet.code != ConnackCode.ACCEPTED:
            self.state = ClientState.DISCONNECTED
            return Refused(packet.code)
        self.state = ClientState.CONNECTED
        for packet_id, unacknowledged in self._in_flight.items():
            again = msgspec.structs.replace(unacknowledged, duplicate=True)
            self._in_flight[packet_id] = again
            self._send(again)
        return Connected(packet.session_present)

    def _publish(self, packet: Publish) -> Event:
        if packet.qos == 2:
            raise ProtocolError("the server sent QoS 2, which this client never grants")
        if packet.packet_id is not None:
            self._send(Puback(packet.packet_id))
        return Received(packet.topic, packet.payload, packet.qos, packet.duplicate)

    def _puback(self, packet: Puback) -> Event:
        # A repetition may come for a message that was re-sent; it means nothing new.
        self._in_flight.pop(packet.packet_id, None)
        return Published(packet.packet_id)

    def _suback(self, packet: Suback) -> Event:
        self._settle(packet.packet_id, Suback)
        return Subscribed(packet.packet_id, tuple(None if code == SUBACK_FAILURE else code for code in packet.codes))

    def _unsuback(self, packet: Unsuback) -> Event:
        self._settle(packet.packet_id, Unsuback)
        return Unsubscribed(packet.packet_id)

    def _settle(self, packet_id: int, expected: type) -> None:
        if self._awaited.pop(packet_id, None) is not expected:
            raise ProtocolError(f"the server answered packet {packet_id} with {expected.__name__}, unasked")

    def _pingresp(self, _packet: Pingresp) -> Event:
        return PingAnswered()


# Every packet that a server may send, by state.
TRANSITIONS: dict[tuple[ClientState, type], Callable[[ClientSession, Any], Event]] = {
    (ClientState.CONNECTING, Connack): ClientSession._connack,
    (ClientState.CONNECTED, Publish): ClientSession._publish,
    (ClientState.CONNECTED, Puback): ClientSession._puback,
    (ClientState.CONNECTED, Suback): ClientSession._suback,
    (ClientState.CONNECTED, Unsuback): ClientSession._unsuback,
    (ClientState.CONNECTED, Pingresp): ClientSession._pingresp,
}
