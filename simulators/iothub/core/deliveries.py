"""How cloud-to-device messages go out to an MQTT client, and what becomes of them there.

A message is locked for as long as the connection stands on which it was published: MQTT sends nothing again before the
client comes back [MQTT-4.4.0-1]. Its PUBACK completes it; without one it goes back into the queue.
"""

from collections.abc import Iterator

from simulators.iothub.core.cloud_to_device import CloudToDevice
from simulators.iothub.core.effects import (
    CloseConnection,
    CloudDelivery,
    InFlight,
    InputMessage,
    SendCloudMessage,
    SendInput,
)
from simulators.iothub.core.sessions import Session
from simulators.iothub.errors import ServiceError

CLOUD_TO_DEVICE, MODULE_INPUTS = "c2d", "inputs"
# The rest waits in the queue, where it can still expire or be purged.
IN_FLIGHT_MAX = 20


class Deliveries:
    """Hands the messages of queues to sessions; every call yields what is to be sent."""

    def __init__(self, queues: CloudToDevice) -> None:
        self._queues = queues

    def send(self, session: Session[InFlight], now: float) -> Iterator[SendCloudMessage]:
        """What waits for a device that listens, as far as there is room for it."""
        device_id = session.identity_id.device_id
        while session.connection is not None and session.hears(CLOUD_TO_DEVICE) and _has_room(session):
            entry = self._queues.receive(device_id, now, lock_s=None)
            if entry is None:
                return
            packet_id = None
            if session.subscriptions[CLOUD_TO_DEVICE] > 0:
                packet_id = session.take_off(CloudDelivery(entry.sequence, entry.lock_token))
                if packet_id is None:
                    self._queues.abandon(device_id, entry.lock_token, now)
                    return
            else:
                self._queues.complete(device_id, entry.lock_token, now)
            yield SendCloudMessage(session.connection, device_id, entry.item, packet_id)

    def send_again(
        self, session: Session[InFlight], packet_id: int, delivery: CloudDelivery, now: float
    ) -> Iterator[SendCloudMessage]:
        """What a client that resumes its session has not acknowledged, unless it ended meanwhile."""
        device_id = session.identity_id.device_id
        entry = self._queues.receive_again(device_id, delivery.sequence, now)
        if entry is None or session.connection is None:
            session.land(packet_id)
            return
        session.in_flight[packet_id] = CloudDelivery(entry.sequence, entry.lock_token)
        yield SendCloudMessage(session.connection, device_id, entry.item, packet_id, is_duplicate=True)

    def acknowledge(self, session: Session[InFlight], delivery: CloudDelivery, now: float) -> None:
        """Complete a message, unless it was purged while it was under way."""
        try:
            self._queues.complete(session.identity_id.device_id, delivery.lock_token, now)
        except ServiceError:
            return


def send_input(session: Session[InFlight], message: InputMessage) -> SendInput | CloseConnection | None:
    """Hand a message to a module that listens; None where it does not. Nothing is queued for one that is away."""
    if session.connection is None or not session.hears(MODULE_INPUTS):
        return None
    packet_id = None
    if session.subscriptions[MODULE_INPUTS] > 0:
        packet_id = session.take_off(message)
        if packet_id is None:
            return CloseConnection(session.connection, "too many messages without a PUBACK")
    return SendInput(session.connection, session.identity_id, message, packet_id)


def _has_room(session: Session[InFlight]) -> bool:
    return sum(isinstance(delivery, CloudDelivery) for delivery in session.in_flight.values()) < IN_FLIGHT_MAX
