"""A queue whose messages are locked while somebody works on them, as the hub's queues of messages all are.

Source: https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-messages-c2d#the-cloud-to-device-message-life-cycle.
"""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from simulators.iothub.core.deadlines import Deadlines
from simulators.iothub.core.ports import Entropy
from simulators.iothub.errors import Fault, ServiceError

LOCK_S = 60.0
DELIVERIES_MAX = 10

T = TypeVar("T")


class MessageState(enum.Enum):
    ENQUEUED = "Enqueued"
    INVISIBLE = "Invisible"
    COMPLETED = "Completed"
    DEAD_LETTERED = "DeadLettered"


class MessageEvent(enum.Enum):
    RECEIVED = "received"
    COMPLETED = "completed"
    ABANDONED = "abandoned, or its lock ran out"
    REJECTED = "rejected"
    EXPIRED = "expired"
    PURGED = "purged"


class Outcome(enum.StrEnum):
    """How a message ended, as feedback spells it."""

    SUCCESS = "Success"
    EXPIRED = "Expired"
    DELIVERY_COUNT_EXCEEDED = "DeliveryCountExceeded"
    REJECTED = "Rejected"
    PURGED = "Purged"


@dataclass(slots=True)
class Entry(Generic[T]):
    """One message in a queue. `locked_until` is None for a lock that lasts until it is given back."""

    sequence: int
    item: T
    enqueued_at: float
    expires_at: float
    state: MessageState = MessageState.ENQUEUED
    delivery_count: int = 0
    lock_token: str = ""
    locked_until: float | None = None
    outcome: Outcome | None = None

    @property
    def is_over(self) -> bool:
        return self.state in (MessageState.COMPLETED, MessageState.DEAD_LETTERED)


def _receive(entry: Entry[T]) -> None:
    entry.state = MessageState.INVISIBLE
    entry.delivery_count += 1


def _complete(entry: Entry[T]) -> None:
    _end(entry, MessageState.COMPLETED, Outcome.SUCCESS)


def _give_back(entry: Entry[T]) -> None:
    if entry.delivery_count >= DELIVERIES_MAX:
        _end(entry, MessageState.DEAD_LETTERED, Outcome.DELIVERY_COUNT_EXCEEDED)
        return
    entry.state = MessageState.ENQUEUED
    entry.lock_token, entry.locked_until = "", None


def _reject(entry: Entry[T]) -> None:
    _end(entry, MessageState.DEAD_LETTERED, Outcome.REJECTED)


def _expire(entry: Entry[T]) -> None:
    _end(entry, MessageState.DEAD_LETTERED, Outcome.EXPIRED)


def _purge(entry: Entry[T]) -> None:
    _end(entry, MessageState.DEAD_LETTERED, Outcome.PURGED)


def _end(entry: Entry[T], state: MessageState, outcome: Outcome) -> None:
    entry.state, entry.outcome = state, outcome
    entry.lock_token, entry.locked_until = "", None


# Every step that a message may take. One that somebody works on does not expire: it does so once it is given back.
TRANSITIONS: dict[tuple[MessageState, MessageEvent], Callable[[Entry[T]], None]] = {
    (MessageState.ENQUEUED, MessageEvent.RECEIVED): _receive,
    (MessageState.ENQUEUED, MessageEvent.EXPIRED): _expire,
    (MessageState.ENQUEUED, MessageEvent.PURGED): _purge,
    (MessageState.INVISIBLE, MessageEvent.COMPLETED): _complete,
    (MessageState.INVISIBLE, MessageEvent.ABANDONED): _give_back,
    (MessageState.INVISIBLE, MessageEvent.REJECTED): _reject,
    (MessageState.INVISIBLE, MessageEvent.PURGED): _purge,
}


class LockingQueue(Generic[T]):
    """Messages in the order in which they came; one that is given back keeps its place.

    Who calls learns of every message that ends (`Entry.outcome`), since it is gone from the queue then.
    """

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy
        self._entries: dict[int, Entry[T]] = {}
        self._locked: dict[str, Entry[T]] = {}
        self._deadlines: Deadlines[int] = Deadlines()
        self._last_sequence = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self._entries.values())

    def find(self, sequence: int) -> Entry[T] | None:
        return self._entries.get(sequence)

    def push(self, item: T, now: float, expires_at: float) -> Entry[T]:
        self._last_sequence += 1
        entry = Entry(self._last_sequence, item, now, expires_at)
        self._entries[entry.sequence] = entry
        self._schedule(entry)
        return entry

    def put_back(self, entry: Entry[T]) -> None:
        """Take up an entry that an earlier run has stored."""
        self._entries[entry.sequence] = entry
        self._entries = dict(sorted(self._entries.items()))
        self._last_sequence = max(self._last_sequence, entry.sequence)
        self._schedule(entry)

    def drop(self, sequence: int) -> None:
        """Forget a message without an outcome."""
        entry = self._entries.pop(sequence, None)
        if entry is not None:
            self._locked.pop(entry.lock_token, None)
            self._deadlines.set(sequence, None)

    def receive(self, locked_until: float | None) -> Entry[T] | None:
        """Lock the oldest message that waits, for good when `locked_until` is None."""
        waiting = next((entry for entry in self if entry.state is MessageState.ENQUEUED), None)
        return None if waiting is None else self.lock(waiting, locked_until)

    def lock(self, entry: Entry[T], locked_until: float | None) -> Entry[T]:
        """Lock one message that waits."""
        entry.locked_until = locked_until
        self._step(entry, MessageEvent.RECEIVED)
        entry.lock_token = self._entropy.identifier()
        self._locked[entry.lock_token] = entry
        return entry

    def settle(self, lock_token: str, event: MessageEvent) -> Entry[T]:
        """Say how the work on a locked message went.

        Raises:
            ServiceError: DeviceMessageLockLost, when this lock is not held any more.
        """
        entry = self._locked.get(lock_token)
        if entry is None:
            raise ServiceError(
                Fault.DeviceMessageLockLost, f"no message is locked with {lock_token!r}: its lock ran out, or it ended"
            )
        self._step(entry, event)
        return entry

    def sweep(self, now: float) -> list[Entry[T]]:
        """Give back what was locked for too long, and let expire what waited for too long; returns what changed."""
        changed = []
        for sequence in self._deadlines.take_due(now):
            entry = self._entries[sequence]
            if entry.state is MessageState.INVISIBLE:
                self._step(entry, MessageEvent.ABANDONED)
            if entry.state is MessageState.ENQUEUED and entry.expires_at <= now:
                self._step(entry, MessageEvent.EXPIRED)
            changed.append(entry)
        return changed

    def next_deadline(self) -> float | None:
        """When `sweep` will have something to do."""
        return self._deadlines.next()

    def purge(self) -> list[Entry[T]]:
        """End every message; returns them."""
        purged = list(self)
        for entry in purged:
            self._step(entry, MessageEvent.PURGED)
        return purged

    def _step(self, entry: Entry[T], event: MessageEvent) -> None:
        lock_token = entry.lock_token
        TRANSITIONS[entry.state, event](entry)
        if lock_token and entry.state is not MessageState.INVISIBLE:
            del self._locked[lock_token]
        if entry.is_over:
            del self._entries[entry.sequence]
        self._schedule(entry)

    def _schedule(self, entry: Entry[T]) -> None:
        deadline = entry.expires_at if entry.state is MessageState.ENQUEUED else entry.locked_until
        self._deadlines.set(entry.sequence, deadline)
