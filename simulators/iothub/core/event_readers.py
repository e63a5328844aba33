"""Readers of the built-in endpoint: where one starts, and who may read beside whom.

Source: https://learn.microsoft.com/azure/event-hubs/event-hubs-features#event-consumers and the epoch rules of
https://learn.microsoft.com/azure/event-hubs/event-processor-balance-partition-load.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from simulators.iothub.core.events import Event, Partition
from simulators.iothub.errors import Fault, ServiceError

# Without an epoch, so many readers may share a partition of a consumer group.
READERS_MAX = 5
_SELECTOR = re.compile(
    r"\s*amqp\.annotation\.x-opt-(offset|sequence-number|enqueued-time(?:-utc)?)\s*(>=?)\s*'?([^']{0,40}?)'?\s*"
)
_NUMBER = re.compile(r"-?[0-9]{1,20}")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a reader starts: after `value`, or at it. `kind` is offset, sequence-number or enqueued-time."""

    kind: str
    value: str
    is_inclusive: bool

    @classmethod
    def parse(cls, selector: str) -> "Position":
        """Read a selector filter.

        Raises:
            ServiceError: ArgumentInvalid.
        """
        found = _SELECTOR.fullmatch(selector)
        if found is None:
            raise ServiceError(Fault.ArgumentInvalid, f"the filter {selector!r:.100} is no position in a partition")
        kind, operator, value = found.group(1).removesuffix("-utc"), found.group(2), found.group(3)
        if not _NUMBER.fullmatch(value) and (kind, value) != ("offset", "@latest"):
            raise ServiceError(Fault.ArgumentInvalid, f"{value!r} is no {kind} of an event")
        return cls(kind, value, operator == ">=")

    def number_in(self, partition: Partition) -> int:
        """The number of the first event to read."""
        if self.value == "@latest":
            return partition.next_number
        wanted = int(self.value)
        if self.kind == "sequence-number":
            return max(partition.first_number, wanted if self.is_inclusive else wanted + 1)
        key = _KEYS[self.kind]
        return _first(partition, lambda event: key(event) >= wanted if self.is_inclusive else key(event) > wanted)


BEGINNING = Position("offset", "-1", is_inclusive=False)

_KEYS: dict[str, Callable[[Event], int]] = {
    "offset": lambda event: event.offset,
    "enqueued-time": lambda event: enqueued_ms(event.enqueued_at),
}


def enqueued_ms(instant: float) -> int:
    """An instant as AMQP writes it; truncated, so that it is never after the instant."""
    return int(instant * 1000)


def _first(partition: Partition, is_reached: Callable[[Event], bool]) -> int:
    """The number of the first event that is far enough; both offsets and times only grow."""
    low, high = partition.first_number, partition.next_number
    while low < high:
        middle = (low + high) // 2
        if is_reached(partition.read(middle, 1)[0]):
            high = middle
        else:
            low = middle + 1
    return low


class ReadersRefused(Exception):  # noqa: N818  it says what happened, as the service's own condition does
    """A reader may not come in beside those who are there; `is_stolen` when one of a higher epoch has the partition."""

    def __init__(self, message: str, *, is_stolen: bool) -> None:
        super().__init__(message)
        self.message = message
        self.is_stolen = is_stolen


class Readers(Generic[T]):
    """Who reads which partition, by consumer group. `T` is whatever stands for a reader."""

    def __init__(self) -> None:
        self._present: dict[tuple[str, int], dict[T, int | None]] = {}

    def enter(self, group: str, partition: int, epoch: int | None, reader: T) -> tuple[T, ...]:
        """Let a reader in; returns those who have to go because of it.

        Raises:
            ReadersRefused: somebody has a higher epoch, or there are too many.
        """
        present = self._present.setdefault((group.lower(), partition), {})
        highest = max((held for held in present.values() if held is not None), default=None)
        if highest is not None and (epoch is None or epoch < highest):
            raise ReadersRefused(
                f"partition {partition} of consumer group {group} has a reader with epoch {highest}; "
                f"one with epoch {epoch} is not let in",
                is_stolen=True,
            )
        if epoch is None and len(present) >= READERS_MAX:
            raise ReadersRefused(
                f"partition {partition} of consumer group {group} has {READERS_MAX} readers already", is_stolen=False
            )
        displaced = () if epoch is None else tuple(present)
        for other in displaced:
            del present[other]
        present[reader] = epoch
        return displaced

    def leave(self, group: str, partition: int, reader: T) -> None:
        present = self._present.get((group.lower(), partition), {})
        present.pop(reader, None)
        if not present:
            self._present.pop((group.lower(), partition), None)
