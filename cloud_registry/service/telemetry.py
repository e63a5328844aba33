"""Takes telemetry from the hub into the archive, once each, and tells what arrived."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
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

READER_WAIT_S = 0.5


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
            total = _sum(total, counts)
            if on_batch is not None:
                on_batch(counts)
        return total

    def collect_all(
        self,
        sources: Sequence[TelemetrySource],
        *,
        follow: bool,
        on_batch: Callable[[StoreCounts], None] | None = None,
    ) -> StoreCounts:
        """Store what several streams give, side by side: each is read in a thread of its own, and this one stores."""
        if len(sources) == 1:
            return self.collect(sources[0], follow=follow, on_batch=on_batch)
        reached = {source.name: self.archive.position(source.name) for source in sources}
        side = _SideBySide(len(sources))
        for source in sources:
            threading.Thread(target=side.read, args=(source, reached[source.name], follow), daemon=True).start()
        total = StoreCounts()
        for name, batch in side.batches():
            counts = self._store(name, reached[name], batch)
            reached[name] = batch.position
            total = _sum(total, counts)
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


class _SideBySide:
    """Batches of several streams, as they come, for one thread."""

    def __init__(self, count: int) -> None:
        self._open_count = count
        self._arrived: queue.Queue[tuple[str, TelemetryBatch | Exception | None]] = queue.Queue(maxsize=count)
        self._is_over = threading.Event()

    def read(self, source: TelemetrySource, after: StreamPosition, follow: bool) -> None:
        """Hand on what a source gives, from a thread of its own."""
        try:
            for batch in source.batches(after, follow):
                self._put((source.name, batch))
                if self._is_over.is_set():
                    return
        except Exception as err:  # noqa: BLE001  (told to the thread that stores, whatever it is)
            self._put((source.name, err))
        else:
            self._put((source.name, None))

    def batches(self) -> Iterator[tuple[str, TelemetryBatch]]:
        """What was read, until every stream has ended; raises what a source raises."""
        try:
            while self._open_count:
                name, item = self._arrived.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    self._open_count -= 1
                else:
                    yield name, item
        finally:
            self._is_over.set()

    def _put(self, item: tuple[str, TelemetryBatch | Exception | None]) -> None:
        # A reader whose batches nobody takes any more comes to an end.
        while not self._is_over.is_set():
            with suppress(queue.Full):
                self._arrived.put(item, timeout=READER_WAIT_S)
                return


def _sum(left: StoreCounts, right: StoreCounts) -> StoreCounts:
    return StoreCounts(
        left.stored + right.stored, left.duplicates + right.duplicates, left.unreadable + right.unreadable
    )
