"""Cloud-to-device messages: a queue for each device, and feedback about how each message ended.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-messages-c2d.
"""

import base64
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from simulators.iothub.core.deadlines import Deadlines
from simulators.iothub.core.feedback import ServiceQueue
from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.locking_queue import LOCK_S, Entry, LockingQueue, MessageEvent, MessageState, Outcome
from simulators.iothub.core.ports import Entropy
from simulators.iothub.errors import Fault, ServiceError

QUEUE_MESSAGES_MAX = 50
MESSAGE_BYTES_MAX = 64 * 1024
MESSAGE_ID_CHARACTERS_MAX = 128
LIFETIME_S = 3600.0
# How the sender wants to hear of an outcome, by the values of `iothub-ack`.
_POSITIVE = frozenset({Outcome.SUCCESS})
_NEGATIVE = frozenset(Outcome) - _POSITIVE
ACKNOWLEDGEMENTS: dict[str, frozenset[Outcome]] = {
    "none": frozenset(),
    "positive": _POSITIVE,
    "negative": _NEGATIVE,
    "full": _POSITIVE | _NEGATIVE,
}


@dataclass(frozen=True, slots=True)
class CloudMessage:
    """A message to a device.

    An empty `message_id` is filled in by the hub, and so is `to`. Without `expires_at` a message is good for an hour.
    """

    message_id: str
    correlation_id: str | None = None
    user_id: str | None = None
    to: str = ""
    content_type: str | None = None
    content_encoding: str | None = None
    expires_at: float | None = None
    ack: str = "none"
    properties: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def size_bytes(self) -> int:
        texts = (self.message_id, self.correlation_id, self.user_id, self.content_type, self.content_encoding)
        counted = (*texts, *self.properties.keys(), *self.properties.values())
        return len(self.body) + sum(len(text.encode(errors="surrogatepass")) for text in counted if text)


def device_address(device_id: str) -> str:
    """Where messages for a device are sent to."""
    return f"/devices/{device_id}/messages/deviceBound"


def cloud_message_bag(message: CloudMessage) -> dict[str, str]:
    """The properties of a message as a device gets them, system properties first."""
    optional = {
        "$.mid": message.message_id,
        "$.cid": message.correlation_id,
        "$.uid": message.user_id,
        "$.ct": message.content_type,
        "$.ce": message.content_encoding,
        "$.exp": None if message.expires_at is None else wire_time(message.expires_at),
        "iothub-ack": None if message.ack == "none" else message.ack,
    }
    system = {key: value for key, value in optional.items() if value}
    address = {"$.to": message.to} if message.to else {}
    return {**address, **system, **message.properties}


# A message as a queue has it.
Delivery = Entry[CloudMessage]


class CloudToDevice:
    """The queues of all devices.

    Args:
        generation_of: the generation id of a device, for its feedback.
        counted: is told how many messages wait for a device, after each change.
        touch: is told the key of each record that changed.
    """

    def __init__(
        self,
        feedback: ServiceQueue,
        entropy: Entropy,
        generation_of: Callable[[str], str],
        counted: Callable[[str, int], None],
        touch: Callable[[str], None] = lambda _key: None,
    ) -> None:
        self._feedback = feedback
        self._entropy = entropy
        self._generation_of = generation_of
        self._counted = counted
        self._touch = touch
        self._queues: dict[str, LockingQueue[CloudMessage]] = {}
        self._deadlines: Deadlines[str] = Deadlines()

    def count(self, device_id: str) -> int:
        """How many messages a device has waiting, locked ones included."""
        queue = self._queues.get(device_id)
        return len(queue) if queue else 0

    def send(self, device_id: str, message: CloudMessage, now: float) -> str:
        """Put a message into a device's queue; returns its message id.

        Raises:
            ServiceError: ArgumentInvalid, MessageTooLarge or DeviceMaximumQueueDepthExceeded.
        """
        self.expire(now)
        check_message(message)
        if self.count(device_id) >= QUEUE_MESSAGES_MAX:
            raise ServiceError(
                Fault.DeviceMaximumQueueDepthExceeded,
                f"{QUEUE_MESSAGES_MAX} messages wait for {device_id}; receive or purge some of them first",
            )
        expires_at = now + LIFETIME_S if message.expires_at is None else message.expires_at
        message_id = message.message_id or self._entropy.identifier()
        stored = replace(message, message_id=message_id, to=device_address(device_id))
        self._changed(device_id, self._queue(device_id).push(stored, now, expires_at), now)
        self.expire(now)
        return message_id

    def receive(self, device_id: str, now: float, *, lock_s: float | None = LOCK_S) -> Delivery | None:
        """Lock the oldest message that waits for a device; with `lock_s` None until it is settled."""
        self.expire(now)
        queue = self._queues.get(device_id)
        entry = queue.receive(None if lock_s is None else now + lock_s) if queue else None
        if entry is not None:
            self._changed(device_id, entry, now)
        return entry

    def receive_again(self, device_id: str, sequence: int, now: float) -> Delivery | None:
        """Lock a message once more that was delivered before; None where it does not wait any more."""
        self.expire(now)
        queue = self._queues.get(device_id)
        entry = queue.find(sequence) if queue else None
        if queue is None or entry is None or entry.state is not MessageState.ENQUEUED:
            return None
        self._changed(device_id, queue.lock(entry, None), now)
        return entry

    def complete(self, device_id: str, lock_token: str, now: float) -> None:
        """The device has dealt with a message; raises ServiceError DeviceMessageLockLost, as the next two do."""
        self._settle(device_id, lock_token, MessageEvent.COMPLETED, now)

    def abandon(self, device_id: str, lock_token: str, now: float) -> None:
        """The device gives a message back; after ten deliveries it is dead."""
        self._settle(device_id, lock_token, MessageEvent.ABANDONED, now)

    def reject(self, device_id: str, lock_token: str, now: float) -> None:
        """The device will not have a message."""
        self._settle(device_id, lock_token, MessageEvent.REJECTED, now)

    def release(self, device_id: str, now: float) -> None:
        """Give back what a connection of the device had locked: it is gone."""
        for entry in list(self._queues.get(device_id, ())):
            if entry.state is MessageState.INVISIBLE and entry.locked_until is None:
                self._settle(device_id, entry.lock_token, MessageEvent.ABANDONED, now)

    def purge(self, device_id: str, now: float) -> int:
        """End every message of a device; returns how many there were."""
        queue = self._queues.get(device_id)
        purged = queue.purge() if queue else []
        for entry in purged:
            self._changed(device_id, entry, now)
        return len(purged)

    def forget(self, device_id: str) -> None:
        """Drop what is kept about a device that is gone; its messages were purged before."""
        self._queues.pop(device_id, None)
        self._deadlines.set(device_id, None)

    def expire(self, now: float) -> list[str]:
        """Give back what was locked too long and end what waited too long; returns the devices this concerns."""
        due = self._deadlines.take_due(now)
        for device_id in due:
            for entry in self._queues[device_id].sweep(now):
                self._changed(device_id, entry, now)
            self._reschedule(device_id)
        return due

    def record(self, key: str) -> Any | None:
        """What is to be stored under a key; None for what is gone."""
        device_id, _, sequence = key.partition("/")
        queue = self._queues.get(device_id)
        entry = queue.find(int(sequence)) if queue else None
        if entry is None:
            return None
        return {
            "message": {**asdict(entry.item), "body": base64.b64encode(entry.item.body).decode()},
            "enqueuedAt": entry.enqueued_at,
            "expiresAt": entry.expires_at,
            "deliveryCount": entry.delivery_count,
        }

    def restore(self, key: str, record: Any) -> None:
        """Take up what an earlier run has stored; what was locked waits again."""
        device_id, _, sequence = key.partition("/")
        message = CloudMessage(**{**record["message"], "body": base64.b64decode(record["message"]["body"])})
        entry = Entry(int(sequence), message, record["enqueuedAt"], record["expiresAt"])
        entry.delivery_count = record["deliveryCount"]
        self._queue(device_id).put_back(entry)
        self._reschedule(device_id)

    def _queue(self, device_id: str) -> LockingQueue[CloudMessage]:
        return self._queues.setdefault(device_id, LockingQueue(self._entropy))

    def _settle(self, device_id: str, lock_token: str, event: MessageEvent, now: float) -> None:
        self.expire(now)
        entry = self._queue(device_id).settle(lock_token, event)
        self._changed(device_id, entry, now)
        # What was given back may have waited beyond its time meanwhile.
        self.expire(now)

    def _changed(self, device_id: str, entry: Delivery, now: float) -> None:
        if entry.outcome is not None and entry.outcome in ACKNOWLEDGEMENTS[entry.item.ack]:
            self._feedback.post(
                {
                    "originalMessageId": entry.item.message_id,
                    "description": entry.outcome.value,
                    "deviceGenerationId": self._generation_of(device_id),
                    "deviceId": device_id,
                    "enqueuedTimeUtc": wire_time(now),
                    "statusCode": entry.outcome.value,
                },
                now,
            )
        self._reschedule(device_id)
        self._touch(f"{device_id}/{entry.sequence}")

    def _reschedule(self, device_id: str) -> None:
        queue = self._queue(device_id)
        self._deadlines.set(device_id, queue.next_deadline())
        self._counted(device_id, len(queue))


def check_message(message: CloudMessage) -> None:
    if message.ack not in ACKNOWLEDGEMENTS:
        raise ServiceError(Fault.ArgumentInvalid, f"iothub-ack is {message.ack!r}; {', '.join(ACKNOWLEDGEMENTS)} exist")
    for name, text in (("message", message.message_id), ("correlation", message.correlation_id)):
        if text and len(text) > MESSAGE_ID_CHARACTERS_MAX:
            raise ServiceError(
                Fault.ArgumentInvalid,
                f"the {name} id has {len(text)} characters; {MESSAGE_ID_CHARACTERS_MAX} are allowed",
            )
    if message.size_bytes > MESSAGE_BYTES_MAX:
        raise ServiceError(
            Fault.MessageTooLarge, f"the message is {message.size_bytes} bytes; {MESSAGE_BYTES_MAX} are allowed"
        )
