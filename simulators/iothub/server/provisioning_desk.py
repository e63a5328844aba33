"""What a device says to the provisioning service over MQTT, once its connection is a `Dialogue`'s.

Handles: one device's requests and the answers. Leaves to the dialogue: packets in and out, keep-alive, closing.
"""

from collections.abc import Callable
from typing import Any

from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.json_text import dump_json
from simulators.iothub.core.provisioning import RETRY_AFTER_S, Proof, Provisioning
from simulators.iothub.errors import ProtocolError, ServiceError
from simulators.iothub.wire import topics
from simulators.iothub.wire.mqtt import Connect, Packet, Puback, Publish, Suback, Subscribe, Unsuback, Unsubscribe


class ProvisioningDesk:
    """Serves the device that came with `packet`."""

    def __init__(
        self,
        provisioning: Provisioning,
        packet: Connect,
        login: topics.ProvisioningLogin,
        certificates: Callable[[], tuple[bytes, ...]],
    ) -> None:
        if packet.client_id != login.registration_id:
            raise ProtocolError(f"client id {packet.client_id!r} is not registration id {login.registration_id!r}")
        if packet.will is not None:
            raise ProtocolError("the provisioning service publishes no will")
        self._provisioning = provisioning
        self._id_scope = login.id_scope
        credential = (packet.password or b"").decode(errors="replace")
        self._proof = Proof(login.registration_id, credential, () if credential else certificates())
        self._is_listening = False

    def open(self, now: float) -> float | None:
        """Check the device's proof; returns when its token ends.

        Raises:
            ServiceError: it does not hold.
        """
        return self._provisioning.attest(self._id_scope, self._proof, now).proven.expires_at

    def answer(self, packet: Publish | Subscribe | Unsubscribe | Puback, now: float) -> list[Packet]:
        """Raises ProtocolError where the connection has to be closed."""
        if isinstance(packet, Subscribe):
            return self._subscribe(packet)
        if isinstance(packet, Unsubscribe):
            self._is_listening = False
            return [Unsuback(packet.packet_id)]
        if isinstance(packet, Publish):
            return self._publish(packet, now)
        return []

    def _subscribe(self, packet: Subscribe) -> list[Packet]:
        for topic_filter, _ in packet.filters:
            if topic_filter != topics.PROVISIONING_RESPONSES:
                raise ProtocolError(f"{self._proof.registration_id} may not subscribe to {topic_filter!r}")
        self._is_listening = True
        return [Suback(packet_id=packet.packet_id, codes=tuple(min(qos, 1) for _, qos in packet.filters))]

    def _publish(self, packet: Publish, now: float) -> list[Packet]:
        if packet.qos == 2:
            raise ProtocolError("the provisioning service takes no message of QoS 2")
        request = topics.parse_provisioning_request(packet.topic)
        status, retry_after_s, body = self._ask(request, packet.payload, now)
        answers: list[Packet] = [] if packet.packet_id is None else [Puback(packet.packet_id)]
        if self._is_listening:
            topic = topics.provisioning_response_topic(status, request.request_id, retry_after_s)
            answers.append(Publish(topic=topic, payload=dump_json(body)))
        return answers

    def _ask(
        self, request: topics.Register | topics.OperationStatus, payload: bytes, now: float
    ) -> tuple[int, int | None, Any]:
        """Run a request, and answer it whatever happens."""
        try:
            if isinstance(request, topics.Register):
                return 202, RETRY_AFTER_S, self._provisioning.register(self._id_scope, self._proof, payload, now)
            return 200, None, self._provisioning.operation(self._id_scope, self._proof, request.operation_id, now)
        except ServiceError as err:
            return err.status, None, err.device_body(request.request_id, wire_time(now))
