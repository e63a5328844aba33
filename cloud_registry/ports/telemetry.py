"""What devices send, where it comes from and where it is kept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from manifests.telemetry import Envelope


@dataclass(frozen=True, slots=True)
class TelemetryEvent:
    """One device-to-cloud message as the hub logged it. `sequence` counts hub-wide from 1."""

    sequence: int
    enqueued_time: str
    device_id: str
    module_id: str
    body: bytes
    message_id: str = ""


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """How far a stream was read: the last event's sequence, and a mark of its content.

    The mark tells a stream that goes on from one that was begun anew behind the same address.
    """

    sequence: int = 0
    mark: str = ""


@dataclass(frozen=True, slots=True)
class TelemetryBatch:
    """Events in order, and where the stream stands after them."""

    events: tuple[TelemetryEvent, ...]
    position: StreamPosition


class TelemetrySource(Protocol):
    @property
    def name(self) -> str:
        """What the position is kept under; holds no secret."""
        ...

    def batches(self, after: StreamPosition, follow: bool) -> Iterator[TelemetryBatch]:
        """What came after a position, as it arrives; with `follow` it never ends by itself and reconnects."""
        ...


@dataclass(frozen=True, slots=True)
class TelemetryRow:
    """The facts of one stored envelope that a summary is made of."""

    device: str
    module: str
    boot: str
    sequence: int
    model: str
    version: int
    kind: str
    confidence: float | None


@dataclass(frozen=True, slots=True)
class UnreadableEvent:
    """A message that is no envelope of the device it came from. It is counted, never silently dropped."""

    sequence: int
    device: str
    module: str
    reason: str


@dataclass(frozen=True, slots=True)
class StoreCounts:
    stored: int = 0
    duplicates: int = 0
    unreadable: int = 0


class TelemetryArchive(Protocol):
    def position(self, source: str) -> StreamPosition: ...

    def store(
        self,
        source: str,
        expected: StreamPosition,
        reached: StreamPosition,
        envelopes: Sequence[tuple[TelemetryEvent, Envelope]],
        unreadable: Sequence[UnreadableEvent],
    ) -> StoreCounts:
        """Store a batch and move the position in one transaction; ConflictError where another collector moved it."""
        ...

    def rows(self) -> Iterator[TelemetryRow]:
        """Every stored envelope by device, module and sequence."""
        ...

    def duplicates(self) -> Mapping[tuple[str, str, str], int]:
        """How many copies arrived beside the first, by device, module and boot."""
        ...

    def unreadable(self) -> Mapping[tuple[str, str], int]:
        """How many messages were no envelopes, by device and module."""
        ...

    def envelopes(self, device: str | None = None, limit: int | None = None) -> Iterator[Envelope]:
        """Stored envelopes in the order of their arrival; with a limit the newest of them."""
        ...
