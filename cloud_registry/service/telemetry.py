"""Takes telemetry from the hub into the archive, once each, and tells what arrived."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from cloud_registry.core.monitor import read_event, summarise
from cloud_registry.ports import (
    StoreCounts,
    StreamPosition,
    TelemetryArchive,
    TelemetryBatch,
    TelemetryEvent,
    TelemetrySource,
)
from manifests.telemetry import Envelope


@dataclass(frozen=True, slots=True)
class TelemetryService:
    archive: TelemetryArchive

    def collect(
        self, source: TelemetrySource, *, follow: bool, on_batch: Callable[[StoreCounts], None] | None = None
    ) -> StoreCounts:
        """Store what the source gives; with `follow` until the caller is interrupted.

        Each batch and the position behind it are one transaction, so a collector that is killed goes on with the event
        after the last one that it stored.
        """
        position = self.archive.position(source.name)
        total = StoreCounts()
        for batch in source.batches(position, follow):
            counts = self._store(source.name, position, batch)
            position = batch.position
            total = StoreCounts(
                total.stored + counts.stored,
                total.duplicates + counts.duplicates,
                total.unreadable + counts.unreadable,
            )
            if on_batch is not None:
                on_batch(counts)
        return total

    def summary(self) -> dict[str, Any]:
        return summarise(self.archive.rows(), self.archive.duplicates(), self.archive.unreadable())

    def envelopes(self, device: str | None = None, limit: int | None = None) -> Iterator[Envelope]:
        return self.archive.envelopes(device, limit)

    def _store(self, source: str, position: StreamPosition, batch: TelemetryBatch) -> StoreCounts:
        envelopes: list[tuple[TelemetryEvent, Envelope]] = []
        unreadable = []
        for event in batch.events:
            for read in read_event(event):
                if isinstance(read, Envelope):
                    envelopes.append((event, read))
                else:
                    unreadable.append(read)
        return self.archive.store(source, position, batch.position, envelopes, unreadable)
