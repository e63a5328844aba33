"""One MQTT connection between a device and the hub, without the socket.

Handles: the order of packets, what each means to the hub, and the answers. Leaves to the caller: bytes in and out,
timers (`idle_timeout_s`, `expires_at`), and the hub's effects, which it takes after every call.
"""

import enum
import logging
from collections.abc import Callable
from typing import Any, Protocol

from simulators.iothub.core.cloud_to_device import cloud_message_bag
from simulators.iothub.core.effects import SendCloudMessage, SendDesired, SendInput, SendMethod
from simulators.iothub.core.faults import OPERATION_TYPE, Point
from simulators.iothub.core.hub import TWIN_RESPONSES, Admission, Hub
from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.json_text import dump_json
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.core.sessions import ConnectionId
from simulators.iothub.core.throttles import Operation
from simulators.iothub.errors import Fault, ProtocolError, ServiceError, UnsupportedProtocolLevelError
from simulators.iothub.server.provisioning_desk import ProvisioningDesk
from simulators.iothub.wire import topics
from simulators.iothub.wire.mqtt import (
    Connack,
    ConnackCode,
    Connect,
    Decoder,
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
    Will,
    encode,
)

logger = logging.getLogger(__name__)

# A message of 256 KB with the largest topic that MQTT allows.
PACKET_BYTES_MAX = 256 * 1024 + 65_535 + 4
# https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-hub#default-keep-alive-time-out
KEEP_ALIVE_S_MAX = 1767
CONNECT_TIMEOUT_S = 30.0


class Outlet(Protocol):
    """Where a dialogue sends its bytes."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes that were written and have not left yet."""
        ...

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        """Send what was written, then close."""
        ...

    def abort(self) -> None:
        """Close at once; what was written may be lost."""
        ...


class State(enum.Enum):
    AWAITING_CONNECT = "awaiting CONNECT"
    OPEN = "open"
    PROVISIONING = "open for provisioning"
    CLOSED = "closed"


class Dialogue:
    """The hub's side of one MQTT connection.

    Args:
        certificates: gives what the client showed in the TLS handshake, in DER, its own first.
    """

    __slots__ = (
        "_certificates", "_decoder", "_desk", "_faults", "_hub", "_last_request", "_will", "connection",
        "expires_at", "has_room", "identity_id", "idle_timeout_s", "outlet", "state",
    )  # fmt: skip

    def __init__(
        self,
        hub: Hub,
        connection: ConnectionId,
        outlet: Outlet,
        certificates: Callable[[], tuple[bytes, ...]] = tuple,
    ) -> None:
        self.connection = connection
        self.state = State.AWAITING_CONNECT
        self.idle_timeout_s = CONNECT_TIMEOUT_S
        self.expires_at: float | None = None
        self.identity_id: IdentityId | None = None
        self._hub, self._faults = hub, hub.faults
        self._certificates = certificates
        self.outlet = outlet
        self._decoder = Decoder(PACKET_BYTES_MAX)
        self._will: Will | None = None
        self._desk: ProvisioningDesk | None = None
        self._last_request: tuple[str, topics.Request] | None = None
        # Whether the hub has room for this connection; where it has none, CONNECT is refused.
        self.has_room = True

    def receive(self, data: bytes, now: float) -> bool:
        """Take bytes from the client; whatever breaks a rule closes this connection and harms no other.

        Returns:
            Whether a packet was complete: only those keep a connection alive [MQTT-3.1.2-24].
        """
        if self._faults.planted and self.suffer(now):
            return True
        try:
            packets = self._decoder.feed(data)
        except ProtocolError as err:
            self._handle_all(err.decoded, now)
            self._refuse_stream(err, now)
            return True
        self._handle_all(packets, now)
        return bool(packets)

    def close(self, reason: str, now: float) -> None:
        """End the connection from our side; the client's will is published, since it did not say goodbye."""
        if self.state is State.CLOSED:
            return
        logger.info("closing %s: %s", self._name, reason)
        self._end(now)
        self.outlet.close()

    def cut(self, now: float) -> None:
        """End the connection as a broken network would."""
        if self.state is not State.CLOSED:
            self._end(now)
        self.outlet.abort()

    def lost(self, now: float) -> None:
        """The connection is gone."""
        if self.state is not State.CLOSED:
            logger.info("%s went away", self._name)
            self._end(now)

    def suffer(self, now: float) -> bool:
        """Let a planted fault end the connection; returns whether one did."""
        fault = self._faults.strike(Point.CONNECTION, self._client, now) if self.state is State.OPEN else None
        if fault is None:
            return False
        if fault.kind == "kill":
            self.cut(now)
        else:
            self.close("its token ended, since a fault was planted", now)
        return True

    def forget(self, packet_id: int | None, now: float) -> None:
        """Have a delivery count as done that was never sent."""
        if packet_id is not None:
            self._hub.acknowledge(self._client, packet_id, now)

    def send_late(self, data: bytes) -> None:
        """Send an answer that was put off."""
        if self.state is not State.CLOSED:
            self.outlet.write(data)

    def send_desired(self, effect: SendDesired) -> None:
        self._deliver(topics.desired_patch_topic(effect.patch.version), effect.patch.body, effect)

    def send_cloud_message(self, effect: SendCloudMessage) -> None:
        topic = topics.cloud_message_topic(effect.device_id, cloud_message_bag(effect.message))
        self._deliver(topic, effect.message.body, effect)

    def send_input(self, effect: SendInput) -> None:
        message = effect.message
        topic = topics.module_input_topic(*effect.identity_id, message.name, message.properties)
        self._deliver(topic, message.body, effect)

    def send_method(self, effect: SendMethod) -> None:
        self._send(Publish(topic=topics.method_topic(effect.name, effect.request_id), payload=effect.payload))

    # --- within -----------------------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self.identity_id.client_id if self.identity_id else f"connection {self.connection}"

    @property
    def _client(self) -> IdentityId:
        if self.identity_id is None:
            raise RuntimeError("no client has been let in on this connection")
        return self.identity_id

    def _handle_all(self, packets: Any, now: float) -> None:
        for packet in packets:
            if self.state is State.CLOSED:
                return
            handler = TRANSITIONS.get((self.state, type(packet)))
            if handler is None:
                self.close(f"{type(packet).__name__} has no place while the connection is {self.state.value}", now)
                return
            try:
                handler(self, packet, now)
            except (ProtocolError, ServiceError) as err:
                self.close(err.message, now)

    def _deliver(self, topic: str, body: bytes, effect: SendDesired | SendCloudMessage | SendInput) -> None:
        self._send(
            Publish(
                topic=topic,
                payload=body,
                qos=0 if effect.packet_id is None else 1,
                packet_id=effect.packet_id,
                duplicate=effect.is_duplicate,
            )
        )

    def _refuse_stream(self, err: ProtocolError, now: float) -> None:
        if isinstance(err, UnsupportedProtocolLevelError) and self.state is State.AWAITING_CONNECT:
            self._send(Connack(code=ConnackCode.UNACCEPTABLE_PROTOCOL_LEVEL))
        self.close(err.message, now)

    def _send(self, packet: Packet) -> None:
        if self.state is not State.CLOSED:
            self.outlet.write(encode(packet))

    def _end(self, now: float) -> None:
        was_open = self.state is State.OPEN
        self.state = State.CLOSED
        if was_open:
            self._publish_will(now)
            self._hub.disconnect(self._client, self.connection, now)

    def _publish_will(self, now: float) -> None:
        if self._will is None:
            return
        try:
            request = self._own_telemetry(self._will.topic)
            properties = {**request.properties, "iothub-MessageType": "Will"}
            self._hub.accept_event(self._client, request.system_properties, properties, self._will.payload, now)
        except ServiceError as err:
            logger.warning("the will of %s is lost: %s", self._name, err.message)

    # --- CONNECT ----------------------------------------------------------------------------------------------------

    def _connect(self, packet: Connect, now: float) -> None:
        if not self.has_room:
            self._refuse(ConnackCode.SERVER_UNAVAILABLE, "too many connections are open", now)
            return
        if self._hub.throttles and not self._hub.throttles.has_room(Operation.CONNECT, now):
            self._refuse(ConnackCode.SERVER_UNAVAILABLE, "too many connections in this time for the tier", now)
            return
        if fault := self._faults.strike(Point.CONNECT, IdentityId.of_client(packet.client_id), now):
            self._refuse(ConnackCode(int(fault.value)), "a fault was planted", now)
            return
        try:
            login = topics.parse_provisioning_login(packet.username or "")
            if login is not None and not self._hub.gatekeeper.knows_host(login.id_scope):
                self._open_desk(packet, login, now)
                return
            admission = self._admit(packet, now)
        except ServiceError as err:
            self._refuse(ConnackCode.NOT_AUTHORIZED, err.message, now)
            return
        except ProtocolError as err:
            self._refuse(ConnackCode.IDENTIFIER_REJECTED, err.message, now)
            return
        self.identity_id = admission.identity_id
        self.expires_at = admission.expires_at
        self.idle_timeout_s = _idle_timeout_s(packet)
        self.state = State.OPEN
        logger.info("%s connected", self._name)
        self._send(Connack(session_present=admission.is_session_present))
        self._hub.resume(admission.identity_id, now)

    def _open_desk(self, packet: Connect, login: topics.ProvisioningLogin, now: float) -> None:
        """Let a device in that comes for provisioning; nothing of it is kept between connections."""
        self._desk = ProvisioningDesk(self._hub.provisioning, packet, login, self._certificates)
        self.expires_at = self._desk.open(now)
        self.idle_timeout_s = _idle_timeout_s(packet)
        self.state = State.PROVISIONING
        logger.info("%s came to be provisioned", login.registration_id)
        self._send(Connack())

    def _ask_desk(self, packet: Publish | Subscribe | Unsubscribe | Puback, now: float) -> None:
        if self._desk is None:
            raise RuntimeError("nobody came to be provisioned on this connection")
        for answer in self._desk.answer(packet, now):
            self._send(answer)

    def _admit(self, packet: Connect, now: float) -> Admission:
        login = topics.parse_login(packet.username or "")
        if login.client_id != packet.client_id:
            raise ProtocolError(f"client id {packet.client_id!r} is not that of user name {packet.username!r}")
        if not self._hub.gatekeeper.knows_host(login.host_name):
            raise ServiceError(Fault.IotHubUnauthorizedAccess, f"this hub is not {login.host_name}")
        identity_id = IdentityId(login.device_id, login.module_id)
        self._check_will(packet.will, identity_id)
        # Who has a password has no need of a certificate: the service takes one or the other.
        credential = (packet.password or b"").decode(errors="replace")
        admission = self._hub.connect(
            identity_id,
            credential,
            self.connection,
            is_clean=packet.clean_session,
            now=now,
            certificates=() if credential else self._certificates(),
        )
        if model_id := login.parameters.get("model-id"):
            self._hub.set_model(identity_id, model_id)
        self._will = packet.will
        return admission

    def _check_will(self, will: Will | None, identity_id: IdentityId) -> None:
        if will is None:
            return
        request = topics.parse_request(will.topic)
        if not isinstance(request, topics.Telemetry) or (request.device_id, request.module_id) != identity_id:
            raise ProtocolError(f"will topic {will.topic!r} is not where this client sends telemetry")

    def _refuse(self, code: ConnackCode, reason: str, now: float) -> None:
        self._send(Connack(code=code))
        self.close(f"refused with CONNACK {code.value}: {reason}", now)

    # --- the open connection ----------------------------------------------------------------------------------------

    def _publish(self, packet: Publish, now: float) -> None:
        if packet.qos == 2:
            raise ProtocolError("the hub takes no message of QoS 2")
        if self._faults.planted and self._faults.strike(Point.PUBLISH, self._client, now):
            return
        request = self._request(packet.topic)
        if isinstance(request, topics.Telemetry):
            # The event is in the log before its PUBACK leaves.
            wait_s = self._hub.throttles.admit_event(len(packet.payload), now) if self._hub.throttles else 0.0
            self._accept_telemetry(request, packet, now)
            self._acknowledge(packet, now, wait_s)
            return
        self._acknowledge(packet, now)
        match request:
            case topics.TwinGet(request_id):
                self._answer_twin(
                    request_id,
                    Operation.TWIN_READ,
                    packet,
                    now,
                    lambda: (200, None, self._hub.device_twin(self._client, now)),
                )
            case topics.TwinPatch(request_id):
                self._answer_twin(
                    request_id,
                    Operation.TWIN_UPDATE,
                    packet,
                    now,
                    lambda: (204, self._hub.report(self._client, packet.payload, now), b""),
                )
            case topics.MethodAnswer(status, request_id):
                self._hub.answer_method(self._client, request_id, status, packet.payload, now)

    def _acknowledge(self, packet: Publish, now: float, wait_s: float = 0.0) -> None:
        if packet.packet_id is None:
            return
        if not (self._faults.planted and self._faults.strike(Point.PUBACK, self._client, now)):
            self._answer(Puback(packet.packet_id), now, wait_s)

    def _answer(self, packet: Puback | Publish, now: float, wait_s: float = 0.0) -> None:
        """Send an answer, later where its turn comes later or a fault wants it."""
        if self._faults.planted:
            wait_s += self._faults.delay_s(self._client, now)
        if wait_s:
            self._hub.send_later(self.connection, now + wait_s, encode(packet))
        else:
            self._send(packet)

    def _accept_telemetry(self, request: topics.Telemetry, packet: Publish, now: float) -> None:
        self._check_own(request, packet.topic)
        properties = {**request.properties, "mqtt-retain": "true"} if packet.retain else request.properties
        self._hub.accept_event(self._client, request.system_properties, properties, packet.payload, now)
        if OPERATION_TYPE in properties:
            self._faults.obey(self.connection, properties, now)

    def _request(self, topic: str) -> topics.Request:
        """Read a topic; most devices publish to the same one again and again, so that the last one is remembered."""
        if self._last_request is None or self._last_request[0] != topic:
            self._last_request = (topic, topics.parse_request(topic))
        return self._last_request[1]

    def _own_telemetry(self, topic: str) -> topics.Telemetry:
        request = topics.parse_request(topic)
        if not isinstance(request, topics.Telemetry):
            raise ProtocolError(f"{topic!r} is no topic for telemetry")
        self._check_own(request, topic)
        return request

    def _check_own(self, request: topics.Telemetry, topic: str) -> None:
        if (request.device_id, request.module_id) != self.identity_id:
            raise ProtocolError(f"{self._name} may not publish to {topic!r}")

    def _answer_twin(
        self,
        request_id: str,
        operation: Operation,
        packet: Publish,
        now: float,
        act: Callable[[], tuple[int, int | None, bytes]],
    ) -> None:
        """Run a twin request and answer it whatever happens: the device SDK waits for ever."""
        wait_s = 0.0
        try:
            if self._hub.throttles:
                wait_s = self._hub.throttles.admit_twin(operation, len(packet.payload), now)
            status, version, body = act()
        except ServiceError as err:
            status, version = err.status, None
            body = dump_json(err.device_body(request_id, wire_time(now)))
        if self._hub.hears(self._client, TWIN_RESPONSES):
            self._answer(
                Publish(topic=topics.twin_response_topic(status, request_id, version), payload=body), now, wait_s
            )

    def _puback(self, packet: Puback, now: float) -> None:
        self._hub.acknowledge(self._client, packet.packet_id, now)

    def _subscribe(self, packet: Subscribe, now: float) -> None:
        features = [(self._feature(topic_filter), qos) for topic_filter, qos in packet.filters]
        codes = tuple(min(qos, 1) for _, qos in features)
        self._send(Suback(packet_id=packet.packet_id, codes=codes))
        for (feature, _), granted in zip(features, codes, strict=True):
            self._hub.subscribe(self._client, feature, granted, now)

    def _unsubscribe(self, packet: Unsubscribe, _now: float) -> None:
        for topic_filter in packet.filters:
            self._hub.unsubscribe(self._client, self._feature(topic_filter))
        self._send(Unsuback(packet.packet_id))

    def _feature(self, topic_filter: str) -> topics.Feature:
        feature = topics.feature_of(topic_filter, *self._client)
        if feature is None:
            # The SDK takes a refusal in a SUBACK for success, so the connection has to go.
            raise ProtocolError(f"{self._client.client_id} may not subscribe to {topic_filter!r}")
        return feature

    def _ping(self, _packet: Pingreq, _now: float) -> None:
        self._send(Pingresp())

    def _goodbye(self, _packet: Disconnect, now: float) -> None:
        self._will = None
        self.close("the client disconnected", now)


def _idle_timeout_s(packet: Connect) -> float:
    return min(packet.keep_alive_s * 1.5, KEEP_ALIVE_S_MAX) if packet.keep_alive_s else KEEP_ALIVE_S_MAX


# Every packet that a client may send, by state; for any other pair the connection is closed (MQTT-3.1.0-1, -2).
TRANSITIONS: dict[tuple[State, type], Callable[[Dialogue, Any, float], None]] = {
    (State.AWAITING_CONNECT, Connect): Dialogue._connect,
    (State.OPEN, Publish): Dialogue._publish,
    (State.OPEN, Puback): Dialogue._puback,
    (State.OPEN, Subscribe): Dialogue._subscribe,
    (State.OPEN, Unsubscribe): Dialogue._unsubscribe,
    (State.OPEN, Pingreq): Dialogue._ping,
    (State.OPEN, Disconnect): Dialogue._goodbye,
    (State.PROVISIONING, Publish): Dialogue._ask_desk,
    (State.PROVISIONING, Puback): Dialogue._ask_desk,
    (State.PROVISIONING, Subscribe): Dialogue._ask_desk,
    (State.PROVISIONING, Unsubscribe): Dialogue._ask_desk,
    (State.PROVISIONING, Pingreq): Dialogue._ping,
    (State.PROVISIONING, Disconnect): Dialogue._goodbye,
}
