"""The rules of store-and-forward telemetry. Pure.

Handles: order, the window of messages in flight, acknowledgement, bounds, and what is dropped when they are reached.
Leaves to the caller: where bytes live, when to call, and what a link is.

Sequences count from 1 without a gap. A message is offered for sending only after it was stored, oldest first; it leaves
the outbox when it is acknowledged, or when it is the oldest that waits and there is no room for a newer one.
"""

import heapq
from collections import deque
from dataclasses import dataclass

# As many as the MQTT client keeps unacknowledged at a time; more would wait inside it instead of here.
IN_FLIGHT_MAX = 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait. At one reading a second the default keeps a week."""

    messages_max: int = 700_000
    size_bytes_max: int = 256 * 1024 * 1024


class Outbox:
    """The order of what is stored. Costs a few bytes a message: bodies stay with the caller."""

    def __init__(self, stored: list[tuple[int, int]], last_sequence: int, bounds: Bounds) -> None:
        """Take up (sequence, size_bytes) of what an earlier process left, ordered by sequence."""
        self._bounds = bounds
        self._first = stored[0][0] if stored else last_sequence + 1
        # Size of each message from `_first` on; zero where it has left.
        self._sizes: deque[int] = deque()
        self._last = last_sequence
        self._cursor = self._first
        self._returned: list[int] = []
        self._in_flight: set[int] = set()
        self.waiting_count = 0
        self.waiting_bytes = 0
        for sequence, size_bytes in stored:
            self._fill_to(sequence)
            self._append(size_bytes)
        # Acknowledged or dropped from the end: the numbers are used up all the same.
        self._fill_to(last_sequence + 1)

    @property
    def last_sequence(self) -> int:
        return self._last

    @property
    def next_sequence(self) -> int:
        return self._last + 1

    @property
    def in_flight_count(self) -> int:
        return len(self._in_flight)

    def room_for(self, sizes_bytes: list[int]) -> list[int]:
        """Which messages to drop so that these fit: the oldest that are not in flight. Nothing is changed yet."""
        count = self.waiting_count + len(sizes_bytes) - self._bounds.messages_max
        arriving_bytes = sum(max(1, size_bytes) for size_bytes in sizes_bytes)
        excess_bytes = self.waiting_bytes + arriving_bytes - self._bounds.size_bytes_max
        evicted = []
        for offset, size_bytes in enumerate(self._sizes):
            if count <= 0 and excess_bytes <= 0:
                break
            sequence = self._first + offset
            # One in flight may be acknowledged any moment; to count it as dropped too would be counting it twice.
            if size_bytes and sequence not in self._in_flight:
                evicted.append(sequence)
                count -= 1
                excess_bytes -= size_bytes
        return evicted

    def stored(self, sizes_bytes: list[int]) -> None:
        """The caller has made messages durable under the next sequences; from now on they may be sent."""
        for size_bytes in sizes_bytes:
            self._append(size_bytes)
            self._last += 1

    def dropped(self, sequences: list[int]) -> None:
        for sequence in sequences:
            self._remove(sequence)

    def take(self) -> list[int]:
        """The next messages to send, oldest first, as many as the window allows. They are in flight from now on."""
        taken: list[int] = []
        while len(self._in_flight) < IN_FLIGHT_MAX:
            sequence = self._next()
            if sequence is None:
                break
            self._in_flight.add(sequence)
            taken.append(sequence)
        return taken

    def acknowledged(self, sequence: int) -> bool:
        """The hub has it. False where that is no news: an acknowledgement may come twice, or after a drop."""
        self._in_flight.discard(sequence)
        return self._remove(sequence)

    def returned(self, sequence: int) -> None:
        """The attempt to send it failed; it waits again, in its old place."""
        if sequence in self._in_flight:
            self._in_flight.discard(sequence)
            heapq.heappush(self._returned, sequence)

    def _next(self) -> int | None:
        while self._returned:
            sequence = heapq.heappop(self._returned)
            if self._holds(sequence):
                return sequence
        self._cursor = max(self._cursor, self._first)
        while self._cursor <= self._last:
            sequence = self._cursor
            self._cursor += 1
            if self._holds(sequence):
                return sequence
        return None

    def _holds(self, sequence: int) -> bool:
        offset = sequence - self._first
        return 0 <= offset < len(self._sizes) and self._sizes[offset] > 0

    def _append(self, size_bytes: int) -> None:
        # An empty body still is a message.
        self._sizes.append(max(1, size_bytes))
        self.waiting_count += 1
        self.waiting_bytes += max(1, size_bytes)

    def _fill_to(self, sequence: int) -> None:
        while self._first + len(self._sizes) < sequence:
            self._sizes.append(0)

    def _remove(self, sequence: int) -> bool:
        if not self._holds(sequence):
            return False
        offset = sequence - self._first
        self.waiting_count -= 1
        self.waiting_bytes -= self._sizes[offset]
        self._sizes[offset] = 0
        while self._sizes and self._sizes[0] == 0:
            self._sizes.popleft()
            self._first += 1
        return True
