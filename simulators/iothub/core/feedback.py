"""What the hub tells service applications about messages and uploads: queues that one of them reads at a time.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-messages-c2d#message-feedback.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulators.iothub.core.json_text import dump_json
from simulators.iothub.core.locking_queue import LOCK_S, Entry, LockingQueue, MessageEvent, MessageState
from simulators.iothub.core.ports import Entropy

FEEDBACK_CONTENT_TYPE = "application/vnd.microsoft.iothub.feedback.json"
NOTIFICATION_CONTENT_TYPE = "application/vnd.microsoft.iothub.filenotification.json"
LIFETIME_S = 3600.0
RECORDS_PER_BATCH_MAX = 64
BATCHES_MAX = 10_000


def _ignore(_key: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class FeedbackBatch:
    """A message of the hub to a service application, locked until it is completed or abandoned."""

    lock_token: str
    body: bytes
    enqueued_at: float
    user_id: str
    content_type: str


class ServiceQueue:
    """Batches of records for service applications; `user_id` names the hub that sends them.

    Args:
        records_max: how many records one message holds. With more than one its body is a JSON array, else an object.
    """

    def __init__(
        self,
        user_id: str,
        content_type: str,
        records_max: int,
        entropy: Entropy,
        touch: Callable[[str], None] = _ignore,
    ) -> None:
        self._user_id = user_id
        self._content_type = content_type
        self._records_max = records_max
        self._queue: LockingQueue[list[Any]] = LockingQueue(entropy)
        self._newest: Entry[list[Any]] | None = None
        self._touch = touch

    def __len__(self) -> int:
        """How many records wait, locked ones included."""
        return sum(len(entry.item) for entry in self._queue)

    def post(self, record: dict[str, Any], now: float) -> None:
        """Add a record, to the newest batch while nobody has seen that; beyond the bound the oldest batch goes."""
        newest = self._newest
        if (
            newest is None
            or newest.state is not MessageState.ENQUEUED
            or newest.delivery_count
            or len(newest.item) >= self._records_max
        ):
            newest = self._newest = self._queue.push([], now, now + LIFETIME_S)
            if len(self._queue) > BATCHES_MAX:
                oldest = next(iter(self._queue))
                self._queue.drop(oldest.sequence)
                self._touch(str(oldest.sequence))
        newest.item.append(record)
        self._touch(str(newest.sequence))

    def receive(self, now: float) -> FeedbackBatch | None:
        """Lock the oldest batch for a minute; None where there is none."""
        self.expire(now)
        entry = self._queue.receive(now + LOCK_S)
        if entry is None:
            return None
        self._touch(str(entry.sequence))
        body = dump_json(entry.item if self._records_max > 1 else entry.item[0])
        return FeedbackBatch(entry.lock_token, body, entry.enqueued_at, self._user_id, self._content_type)

    def complete(self, lock_token: str) -> None:
        """Remove a batch that was dealt with; raises ServiceError DeviceMessageLockLost."""
        self._settle(lock_token, MessageEvent.COMPLETED)

    def abandon(self, lock_token: str) -> None:
        """Give a batch back for the next reader; raises ServiceError DeviceMessageLockLost."""
        self._settle(lock_token, MessageEvent.ABANDONED)

    def expire(self, now: float) -> None:
        for entry in self._queue.sweep(now):
            self._touch(str(entry.sequence))

    def record(self, key: str) -> Any | None:
        """What is to be stored under a key; None for what is gone."""
        entry = self._queue.find(int(key))
        if entry is None:
            return None
        return {
            "records": entry.item,
            "enqueuedAt": entry.enqueued_at,
            "expiresAt": entry.expires_at,
            "deliveryCount": entry.delivery_count,
        }

    def restore(self, key: str, record: Any) -> None:
        """Take up what an earlier run has stored; nobody holds it locked any more."""
        entry = Entry(int(key), list(record["records"]), record["enqueuedAt"], record["expiresAt"])
        entry.delivery_count = record["deliveryCount"]
        self._queue.put_back(entry)

    def _settle(self, lock_token: str, event: MessageEvent) -> None:
        self._touch(str(self._queue.settle(lock_token, event).sequence))


def feedback_queue(host_name: str, entropy: Entropy, touch: Callable[[str], None] = _ignore) -> ServiceQueue:
    """What became of cloud-to-device messages."""
    return ServiceQueue(host_name, FEEDBACK_CONTENT_TYPE, RECORDS_PER_BATCH_MAX, entropy, touch)


def notification_queue(host_name: str, entropy: Entropy, touch: Callable[[str], None] = _ignore) -> ServiceQueue:
    """Which files were uploaded."""
    return ServiceQueue(host_name, NOTIFICATION_CONTENT_TYPE, 1, entropy, touch)
