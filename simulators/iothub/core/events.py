"""The log of device-to-cloud messages, in the order in which the hub accepted them."""

import base64
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Any

from simulators.iothub.core.instants import wire_time
from simulators.iothub.core.registry import IdentityId

EVENTS_MAX = 200_000
EVENT_BYTES_MAX = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One message. `sequence` counts from 1 over the whole hub, without gaps."""

    sequence: int
    enqueued_at: float
    source_id: IdentityId
    generation_id: str
    system_properties: dict[str, str]
    properties: dict[str, str]
    body: bytes
    source: str = "Telemetry"

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


class EventLog:
    """A bounded log: beyond its bounds the oldest events go, as they do from the service after its retention time."""

    def __init__(self, events_max: int = EVENTS_MAX, bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._events: deque[Event] = deque()
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self.last_sequence = 0

    @property
    def first_sequence(self) -> int:
        """The oldest event still there; one beyond the last where there is none."""
        return self._events[0].sequence if self._events else self.last_sequence + 1

    def append(
        self,
        source_id: IdentityId,
        generation_id: str,
        system_properties: dict[str, str],
        properties: dict[str, str],
        body: bytes,
        now: float,
    ) -> Event:
        self.last_sequence += 1
        event = Event(self.last_sequence, now, source_id, generation_id, system_properties, properties, body)
        self._events.append(event)
        self._bytes += len(body)
        while len(self._events) > self._events_max or self._bytes > self._bytes_max:
            self._bytes -= len(self._events.popleft().body)
        return event

    def read(self, after: int, count_max: int) -> list[Event]:
        """Up to `count_max` events with a sequence above `after`, oldest first."""
        skip = max(0, after + 1 - self.first_sequence)
        if skip >= len(self._events):
            return []
        if len(self._events) - skip > skip:
            return list(islice(self._events, skip, skip + count_max))
        # A follower reads near the end of a long log: walk to it from there.
        wanted = list(islice(reversed(self._events), len(self._events) - skip))
        wanted.reverse()
        return wanted[:count_max]
