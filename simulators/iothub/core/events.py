"""The log of events, in the order in which the hub accepted them, and in partitions as the built-in endpoint has them.

An event is in one partition, found by its device, so that what one device sends stays in order there. Its offset and
its sequence number in the partition are what Event Hubs readers know; `sequence` is the simulator's own.
"""

import base64
import zlib
from collections import deque
from itertools import islice
from typing import Any

import msgspec

from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.registry import IdentityId

EVENTS_MAX = 200_000
EVENT_BYTES_MAX = 512 * 1024 * 1024
PARTITIONS_DEFAULT = 4
# The kinds of events that a hub has, as `iothub-message-source` spells them.
TELEMETRY = "Telemetry"
TWIN_CHANGES, LIFECYCLE, CONNECTION_STATE = "twinChangeEvents", "deviceLifecycleEvents", "deviceConnectionStateEvents"


# Made for every message: a plain structure that the collector of garbage need not look into, as it can be in no cycle.
class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One message.

    `sequence` counts from 1 over the whole hub and `number` from 0 within the partition, both without gaps; `offset`
    grows in the partition with the bytes before it.
    """

    sequence: int
    enqueued_at: float
    source_id: IdentityId
    generation_id: str
    system_properties: dict[str, str]
    properties: dict[str, str]
    body: bytes
    partition: int
    number: int
    offset: int
    source: str = TELEMETRY

    def document(self) -> dict[str, Any]:
        return {
            "sequence": self.sequence,
            "enqueuedTime": wire_time(self.enqueued_at),
            "deviceId": self.source_id.device_id,
            "moduleId": self.source_id.module_id,
            "source": self.source,
            "systemProperties": {**self.system_properties, "connectionDeviceGenerationId": self.generation_id},
            "properties": self.properties,
            "body": base64.b64encode(self.body).decode(),
        }


class Partition:
    """One partition's events, oldest first."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self.next_number = 0
        self.next_offset = 0
        self.last_offset = -1
        self.last_enqueued_at = 0.0

    @property
    def first_number(self) -> int:
        """The oldest event still there; `next_number` where there is none."""
        return self._events[0].number if self._events else self.next_number

    @property
    def last_number(self) -> int:
        """The newest event's number; -1 before the first."""
        return self.next_number - 1

    @property
    def is_empty(self) -> bool:
        return not self._events

    def add(self, event: Event) -> None:
        self._events.append(event)
        self.next_number = event.number + 1
        self.last_offset = event.offset
        self.next_offset = event.offset + max(1, len(event.body))
        self.last_enqueued_at = event.enqueued_at

    def drop_oldest(self) -> None:
        self._events.popleft()

    def read(self, from_number: int, count_max: int) -> list[Event]:
        """Up to `count_max` events from a number on, oldest first."""
        return _slice(self._events, from_number - self.first_number, count_max)


class EventLog:
    """A bounded log: beyond its bounds the oldest events go, as they do from the service after its retention time."""

    def __init__(
        self,
        events_max: int = EVENTS_MAX,
        bytes_max: int = EVENT_BYTES_MAX,
        partition_count: int = PARTITIONS_DEFAULT,
    ) -> None:
        self._events: deque[Event] = deque()
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self.last_sequence = 0
        self.partitions = tuple(Partition() for _ in range(partition_count))

    @property
    def first_sequence(self) -> int:
        """The oldest event still there; one beyond the last where there is none."""
        return self._events[0].sequence if self._events else self.last_sequence + 1

    def partition_of(self, device_id: str) -> int:
        """Where a device's events go: always the same partition."""
        return zlib.crc32(device_id.encode()) % len(self.partitions)

    def append(
        self,
        source_id: IdentityId,
        generation_id: str,
        system_properties: dict[str, str],
        properties: dict[str, str],
        body: bytes,
        now: float,
        source: str = TELEMETRY,
    ) -> Event:
        index = self.partition_of(source_id.device_id)
        partition = self.partitions[index]
        self.last_sequence += 1
        event = Event(
            self.last_sequence, now, source_id, generation_id, system_properties, properties, body,
            index, partition.next_number, partition.next_offset, source,
        )  # fmt: skip
        self._add(event)
        return event

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self.partitions[event.partition].add(event)
        self._bytes += _weight(event)
        while len(self._events) > self._events_max or self._bytes > self._bytes_max:
            oldest = self._events.popleft()
            self.partitions[oldest.partition].drop_oldest()
            self._bytes -= _weight(oldest)

    def counters(self) -> dict[str, Any]:
        """Where the log and its partitions have got to, as JSON."""
        return {
            "sequence": self.last_sequence,
            "partitions": [
                [each.next_number, each.next_offset, each.last_offset, each.last_enqueued_at]
                for each in self.partitions
            ],
        }

    def restore_counters(self, record: Any) -> None:
        """Go on where `counters` was; events are restored after it."""
        self.last_sequence = record["sequence"]
        self.partitions = tuple(Partition() for _ in record["partitions"])
        for partition, numbers in zip(self.partitions, record["partitions"], strict=True):
            (partition.next_number, partition.next_offset, partition.last_offset, partition.last_enqueued_at) = numbers

    def restore(self, event: Event) -> None:
        """Take back an event; they come in the order of their sequence."""
        self.last_sequence = event.sequence
        self._add(event)

    def read(self, after: int, count_max: int) -> list[Event]:
        """Up to `count_max` events of all partitions with a sequence above `after`, oldest first."""
        return _slice(self._events, after + 1 - self.first_sequence, count_max)


def _weight(event: Event) -> int:
    """What counts against the bound on bytes: a message may be all properties and no body."""
    weight = len(event.body)
    for properties in (event.system_properties, event.properties):
        for key, value in properties.items():
            weight += len(key) + len(value)
    return weight


def _slice(events: deque[Event], skip: int, count_max: int) -> list[Event]:
    skip = max(0, skip)
    if skip >= len(events):
        return []
    if len(events) - skip > skip:
        return list(islice(events, skip, skip + count_max))
    # A follower reads near the end of a long log: walk to it from there.
    wanted = list(islice(reversed(events), len(events) - skip))
    wanted.reverse()
    return wanted[:count_max]
