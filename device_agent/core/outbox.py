"""The rules of store-and-forward telemetry. Pure.

Handles: order, what is sent next and how much of it at a time, acknowledgement, bounds, and what is dropped for them.
Leaves to the caller: where bytes live, when to call, and what a link is.

Sequences count from 1 without a gap. A message is offered for sending only after it was stored, oldest first. One batch
is in flight at a time: so messages arrive in order over every kind of link, whatever the client does with calls that
are made side by side. A message leaves the outbox when its batch is acknowledged, or when a bound or the hub's refusal
drops it, which is counted by cause.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

EvictionRule = Literal["drop_oldest", "keep_alerts"]

# https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-messages-construct: 256 KB with the properties, and the
# vendor's client counts the objects around the strings too.
MESSAGE_BYTES_MAX = 256 * 1024 - 4 * 1024
# What the hub meters by.
BLOCK_BYTES = 4 * 1024
# Gaps in the arrays are closed when there are so many, and more of them than messages.
_GAPS_MAX = 1024
_ROWS_EACH = 4096


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait, and what is dropped first. At one reading a second the default keeps a week.

    `age_s_max` of zero keeps readings of any age.
    """

    messages_max: int = 700_000
    size_bytes_max: int = 256 * 1024 * 1024
    age_s_max: float = 0.0
    eviction: EvictionRule = "drop_oldest"


# (sequence, size_bytes, clock_s, is_alert) of a stored message. Plain tuples: there may be a million of them.
Waiting = tuple[int, int, int, bool]


@dataclass(frozen=True, slots=True)
class Arriving:
    """A message that is to be stored. `clock_s` counts the seconds that the agent has run since the oldest one came.

    It is no time of day: a device's clock may jump by a year, and nothing may be dropped for that.
    """

    size_bytes: int
    clock_s: int = 0
    is_alert: bool = False


class _Shelf:
    """What waits, as numbers in order: 17 bytes a message."""

    def __init__(self) -> None:
        self.sequences = array("Q")
        # Zero where a message has left.
        self.sizes = array("I")
        self.clocks = array("I")
        self.alerts = bytearray()
        self._head = 0
        self.count = 0
        self.bytes = 0

    def add(self, sequence: int, size_bytes: int, clock_s: int, *, is_alert: bool) -> None:
        # An empty body still is a message.
        size_bytes = max(1, size_bytes)
        self.sequences.append(sequence)
        self.sizes.append(size_bytes)
        self.clocks.append(clock_s)
        self.alerts.append(is_alert)
        self.count += 1
        self.bytes += size_bytes

    def extend(self, rows: Sequence[Waiting]) -> None:
        """Add many at once: a week of readings is taken up at every start."""
        sequences, sizes, clocks, alerts = zip(*rows, strict=True)
        self.sequences.extend(sequences)
        self.sizes.extend(size or 1 for size in sizes)
        self.clocks.extend(clocks)
        self.alerts.extend(alerts)
        self.count += len(rows)
        self.bytes += sum(size or 1 for size in sizes)

    def places(self, sequence: int = 0) -> Iterator[int]:
        """Where messages stand, from that sequence on. Not to be used across `remove`."""
        start = bisect_left(self.sequences, sequence, lo=self._head)
        return (place for place in range(start, len(self.sizes)) if self.sizes[place])

    def remove(self, sequence: int) -> int:
        """Take a message away and return its size; zero where there is none."""
        place = bisect_left(self.sequences, sequence, lo=self._head)
        if place == len(self.sequences) or self.sequences[place] != sequence or not self.sizes[place]:
            return 0
        size_bytes = self.sizes[place]
        self.sizes[place] = 0
        self.count -= 1
        self.bytes -= size_bytes
        while self._head < len(self.sizes) and not self.sizes[self._head]:
            self._head += 1
        gaps = len(self.sizes) - self.count
        if gaps > _GAPS_MAX and gaps > self.count:
            self._close_gaps()
        return size_bytes

    def _close_gaps(self) -> None:
        kept = list(self.places())
        self.sequences = array("Q", (self.sequences[place] for place in kept))
        self.clocks = array("I", (self.clocks[place] for place in kept))
        self.alerts = bytearray(self.alerts[place] for place in kept)
        self.sizes = array("I", (self.sizes[place] for place in kept))
        self._head = 0


class Outbox:
    """The order of what is stored; bodies stay with the caller."""

    def __init__(self, stored: Iterable[Waiting], last_sequence: int, bounds: Bounds) -> None:
        """Take up what an earlier process left, ordered by sequence."""
        self._bounds = bounds
        self._last = last_sequence
        self._shelf = _Shelf()
        self._in_flight: list[int] = []
        self._in_flight_bytes = 0
        # No message before this one that is not in flight is anything but an alert.
        self._plain_from = 0
        self.clock_s = 0
        rows = iter(stored)
        while chunk := list(islice(rows, _ROWS_EACH)):
            self._shelf.extend(chunk)
            self._last = max(self._last, chunk[-1][0])
            self.clock_s = max(self.clock_s, max(clock_s for _, _, clock_s, _ in chunk))

    @property
    def last_sequence(self) -> int:
        return self._last

    @property
    def next_sequence(self) -> int:
        return self._last + 1

    @property
    def waiting_count(self) -> int:
        """Stored and not acknowledged, in flight or not."""
        return self._shelf.count

    @property
    def waiting_bytes(self) -> int:
        return self._shelf.bytes

    @property
    def in_flight_count(self) -> int:
        return len(self._in_flight)

    # Room -------------------------------------------------------------------------------------------------------------

    def room_for(self, arriving: Sequence[Arriving]) -> list[int]:
        """Which messages to drop so that these fit, some of these themselves among them. Nothing is changed yet.

        `drop_oldest` drops by age alone. `keep_alerts` drops the oldest that are no alerts, then those arriving that
        are none, and alerts only where nothing else is left. What is in flight is never dropped: it may be acknowledged
        any moment, and would be counted twice. Nor is anything dropped for its sake that the rule wants to keep.
        """
        count = self._shelf.count + len(arriving) - self._bounds.messages_max
        size_bytes = self._shelf.bytes + sum(max(1, one.size_bytes) for one in arriving) - self._bounds.size_bytes_max
        evicted: list[int] = []
        for group, relief in ((self._expendable(), False), (self._precious(arriving), True)):
            if relief:
                count -= len(self._in_flight)
                size_bytes -= self._in_flight_bytes
            for sequence, size in group:
                if count <= 0 and size_bytes <= 0:
                    break
                evicted.append(sequence)
                count -= 1
                size_bytes -= size
        return evicted

    def expired(self, clock_s: int) -> list[int]:
        """Which messages are older than may be, whatever they say, at this reading of the clock."""
        if not self._bounds.age_s_max:
            return []
        found = []
        for place in self._free():
            if clock_s - self._shelf.clocks[place] <= self._bounds.age_s_max:
                break
            found.append(self._shelf.sequences[place])
        return found

    def stored(self, arriving: Sequence[Arriving], evicted: Iterable[int] = ()) -> None:
        """The caller has made these durable, but for those evicted, under the next sequences; they may be sent."""
        left_out = frozenset(evicted)
        for one in arriving:
            self._last += 1
            self.clock_s = max(self.clock_s, one.clock_s)
            if self._last not in left_out:
                self._shelf.add(self._last, one.size_bytes, one.clock_s, is_alert=one.is_alert)

    def dropped(self, sequences: Iterable[int]) -> None:
        for sequence in sequences:
            self._shelf.remove(sequence)

    def _free(self, sequence: int = 0) -> Iterator[int]:
        """Places of what is not in flight, oldest first. In flight are always the very oldest."""
        return self._shelf.places(max(sequence, self._in_flight[-1] + 1 if self._in_flight else 0))

    def _expendable(self) -> Iterator[tuple[int, int]]:
        keeps_alerts = self._bounds.eviction == "keep_alerts"
        for place in self._free(self._plain_from if keeps_alerts else 0):
            if keeps_alerts:
                self._plain_from = self._shelf.sequences[place]
                if self._shelf.alerts[place]:
                    continue
            yield self._shelf.sequences[place], self._shelf.sizes[place]

    def _precious(self, arriving: Sequence[Arriving]) -> Iterator[tuple[int, int]]:
        numbered = [(sequence, one) for sequence, one in enumerate(arriving, self.next_sequence)]
        if self._bounds.eviction == "keep_alerts":
            yield from ((sequence, max(1, one.size_bytes)) for sequence, one in numbered if not one.is_alert)
            for place in self._free():
                if self._shelf.alerts[place]:
                    yield self._shelf.sequences[place], self._shelf.sizes[place]
            numbered = [(sequence, one) for sequence, one in numbered if one.is_alert]
        yield from ((sequence, max(1, one.size_bytes)) for sequence, one in numbered)

    # Sending ----------------------------------------------------------------------------------------------------------

    def take(self, size_bytes_max: int) -> list[int]:
        """The next batch to send, oldest first: at least one message, and no more bytes as a JSON array than these.

        It is in flight from now on; empty while another one is, or where nothing waits.
        """
        if self._in_flight:
            return []
        batch: list[int] = []
        # The brackets; every message brings a comma, but for one of them.
        size_bytes = 1
        for place in self._shelf.places():
            size_bytes += self._shelf.sizes[place] + 1
            if batch and size_bytes > size_bytes_max:
                break
            batch.append(self._shelf.sequences[place])
            self._in_flight_bytes += self._shelf.sizes[place]
        self._in_flight = batch
        return list(batch)

    def acknowledged(self) -> list[int]:
        """The hub has the batch in flight, so each of its messages; returns them."""
        batch = self._land()
        self.dropped(batch)
        return batch

    def returned(self) -> None:
        """The attempt to send it failed; it waits again, in its old place."""
        batch = self._land()
        self._plain_from = min(self._plain_from, batch[0]) if batch else self._plain_from

    def refused(self) -> list[int]:
        """The hub will never take the batch. A message that was alone is dropped and returned; others wait again."""
        if len(self._in_flight) > 1:
            self.returned()
            return []
        batch = self._land()
        self.dropped(batch)
        return batch

    def _land(self) -> list[int]:
        batch, self._in_flight, self._in_flight_bytes = self._in_flight, [], 0
        return batch


class BatchSize:
    """How many bytes to send at once: more where answers come quickly, less where they are late or do not come.

    A batch that takes longer than the link is patient would be sent again and again, and never arrive. So it begins
    small, doubles while a full one is answered quickly, and halves with each that fails.
    """

    START_BYTES = 4 * BLOCK_BYTES
    QUICK_S = 1.0
    SLOW_S = 8.0

    def __init__(self, size_bytes_max: int) -> None:
        self._max = min(size_bytes_max, MESSAGE_BYTES_MAX)
        self.size_bytes = min(self.START_BYTES, self._max)

    def answered(self, size_bytes: int, elapsed_s: float) -> None:
        if elapsed_s > self.SLOW_S:
            self.failed()
        elif elapsed_s < self.QUICK_S and size_bytes * 2 > self.size_bytes:
            self.size_bytes = min(self._max, self.size_bytes * 2)

    def failed(self) -> None:
        self.size_bytes = max(1, self.size_bytes // 2)

    def refused(self, size_bytes: int) -> None:
        """A batch of so many bytes was too large: none is as large again until the next start."""
        self._max = max(1, size_bytes // 2)
        self.size_bytes = min(self.size_bytes, self._max)
