"""The hub's state in files: what changed is appended before anything that depends on it leaves the process.

Two series of segments. ``state`` holds places and their records, a batch a frame, the last record of a place being the
valid one. ``events`` holds the event log; each segment starts with the log's counters, and a segment goes when the log
has let go of all its events. Nothing waits for the disk: the kernel keeps what was written when this process is killed.
"""

import json
import logging
import os
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from simulators.iothub.core.events import Event
from simulators.iothub.core.hub import Hub
from simulators.iothub.core.ledger import Place
from simulators.iothub.errors import HubStartError, StorageError
from simulators.iothub.server.segments import Segments

logger = logging.getLogger(__name__)

SEGMENT_BYTES_MAX = 64 * 1024 * 1024
# Records that a flush copies into a new segment beside what changed, so that no flush takes long.
COPIED_MAX = 100
EVENTS_PER_FRAME_MAX = 1_000


class Journal:
    """Keeps a hub in a directory. The hub's ledger has to be a kept one, and the hub empty until `open`."""

    def __init__(self, directory: Path, hub: Hub, segment_bytes_max: int = SEGMENT_BYTES_MAX) -> None:
        self._directory = directory
        self._hub = hub
        self._segment_bytes_max = segment_bytes_max
        self._state = Segments(directory, "state")
        self._events = Segments(directory, "events")
        self._live: dict[Place, None] = {}
        self._to_copy: deque[Place] = deque()
        self._copied_bytes = 0
        self._written_sequence = 0
        # The last event of each closed segment, oldest segment first.
        self._closed: deque[tuple[int, int]] = deque()

    def open(self) -> None:
        """Give the hub what was kept, and go on from there.

        Raises:
            HubStartError: the files cannot be read, or are damaged elsewhere than at their end.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._open_state()
            self._open_events()
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise HubStartError(
                f"cannot read the hub's state in {self._directory}: {err!r}",
                hint="Move the directory away, or choose another with --state.",
            ) from err

    def flush(self) -> None:
        """Write down what changed since the last time.

        Raises:
            StorageError: it cannot be written; it is tried again with the next flush.
        """
        has_events = self._hub.events.last_sequence != self._written_sequence
        if not (has_events or self._hub.ledger.has_changes or self._to_copy):
            return
        try:
            self._write_changes()
            self._write_events()
        except OSError as err:
            raise StorageError(f"cannot write to {self._directory}: {os.strerror(err.errno or 0)}") from err

    def close(self) -> None:
        self._state.close()
        self._events.close()

    # --- state ------------------------------------------------------------------------------------------------------

    def _open_state(self) -> None:
        numbers = self._state.numbers()
        records: dict[Place, Any] = {}
        for number in numbers:
            for frame in self._state.read(number):
                for name, key, record in _decode(frame):
                    if record is None:
                        records.pop((name, key), None)
                    else:
                        records[name, key] = record
        self._hub.ledger.restore(records.items())
        self._hub.registry.put_in_order()
        self._live = dict.fromkeys(records)
        self._state.open(numbers[-1] if numbers else 1)
        if len(numbers) > 1:
            # The process ended while it copied: what the older segments hold is copied anew.
            self._start_segment()

    def _write_changes(self) -> None:
        ledger = self._hub.ledger
        changed = ledger.changes()
        copied = [self._to_copy.popleft() for _ in range(min(COPIED_MAX, len(self._to_copy)))]
        places = dict.fromkeys((*changed, *copied))
        if places:
            batch = [(*place, ledger.record(place)) for place in places]
            content = _encode(batch)
            try:
                self._state.append(content)
            except OSError:
                self._to_copy.extendleft(reversed(copied))
                raise
            self._note_written(batch)
            if copied:
                self._copied_bytes += len(content)
        ledger.settle()
        if copied and not self._to_copy:
            self._remove_older()
        elif not self._to_copy and self._state.size_bytes > max(self._segment_bytes_max, 2 * self._copied_bytes):
            self._start_segment()

    def _note_written(self, batch: list[tuple[str, str, Any]]) -> None:
        for name, key, record in batch:
            if record is None:
                self._live.pop((name, key), None)
            else:
                self._live[name, key] = None

    def _start_segment(self) -> None:
        """Begin a segment and copy into it, with the next flushes, all that is there; then older ones may go."""
        self._state.open(self._state.number + 1)
        self._to_copy = deque(self._live)
        self._copied_bytes = 0
        if not self._to_copy:
            self._remove_older()

    def _remove_older(self) -> None:
        for number in self._state.numbers():
            if number != self._state.number:
                self._state.remove(number)

    # --- events -----------------------------------------------------------------------------------------------------

    def _open_events(self) -> None:
        numbers = self._events.numbers()
        for index, number in enumerate(numbers):
            frames = self._events.read(number)
            counters = next(frames, None)
            # Where the first segment starts, the log goes on; later counters repeat what the events say.
            if counters is not None and index == 0:
                self._hub.events.restore_counters(msgspec.json.decode(counters))
            for frame in frames:
                for event in _decode_events(frame):
                    self._hub.events.restore(event)
            self._closed.append((number, self._hub.events.last_sequence))
        self._written_sequence = self._hub.events.last_sequence
        self._start_event_segment(numbers[-1] + 1 if numbers else 1)

    def _write_events(self) -> None:
        log = self._hub.events
        while log.last_sequence != self._written_sequence:
            events = log.read(self._written_sequence, EVENTS_PER_FRAME_MAX)
            self._events.append(_encode_events(events))
            self._written_sequence = events[-1].sequence
        if self._events.size_bytes > self._segment_bytes_max:
            closed = (self._events.number, self._written_sequence)
            self._start_event_segment(self._events.number + 1)
            self._closed.append(closed)

    def _start_event_segment(self, number: int) -> None:
        self._events.open(number, first=msgspec.json.encode(self._hub.events.counters()))
        while self._closed and self._closed[0][1] < self._hub.events.first_sequence:
            self._events.remove(self._closed.popleft()[0])


def _encode(batch: list[tuple[str, str, Any]]) -> bytes:
    try:
        return msgspec.json.encode(batch)
    except (UnicodeEncodeError, OverflowError, ValueError):
        # A lone surrogate and a huge integer are JSON, but not for the fast encoder.
        return json.dumps(batch, separators=(",", ":")).encode()


def _decode(frame: bytes) -> Any:
    try:
        return msgspec.json.decode(frame)
    except (msgspec.DecodeError, ValueError):
        return json.loads(frame)


def _encode_events(events: list[Event]) -> bytes:
    try:
        return msgspec.json.encode(events)
    except (UnicodeEncodeError, OverflowError, ValueError):
        return json.dumps(msgspec.to_builtins(events), separators=(",", ":")).encode()


def _decode_events(frame: bytes) -> list[Event]:
    try:
        return _EVENTS.decode(frame)
    except (msgspec.DecodeError, ValueError):
        return msgspec.convert(json.loads(frame), list[Event])


_EVENTS = msgspec.json.Decoder(list[Event])
