"""The agent's durable state in one SQLite file: journal, outbox, counters and boot.

WAL with synchronous=FULL: a transaction that returned survives a power cut. One connection behind a lock, so that the
runtime's thread and the command line's reader need no more than SQLite gives them.
"""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

from device_agent.adapters.durable_folders import make_folder
from device_agent.core.history import TRANSITIONS_MAX
from device_agent.errors import StateError, StateNotFoundError
from device_agent.ports import Counts, DropCause, Stored

DATABASE_NAME = "agent.db"
SCHEMA_VERSION = 2
# Given back when the disk is full: room for verdicts, and to move a whole WAL into the database.
_RESERVE_NAME = "reserve"
_RESERVE_BYTES = 512 * 1024
# SQLite's own bound is a thousand: on a small disk the WAL would fill it before it is ever moved.
_WAL_PAGES_MAX = 64
# What storing a message takes besides its body: its row, its place in the index, the counters.
_PAGES_BESIDE_MAX = 8

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS models (name TEXT PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (sequence INTEGER PRIMARY KEY, message_id TEXT NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS transitions (number INTEGER PRIMARY KEY, line BLOB NOT NULL);
"""
# The index holds all that is read at the start, so that a week of bodies need not come from the disk for it.
_SECOND_SCHEMA = (
    "ALTER TABLE outbox ADD COLUMN size_bytes INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE outbox ADD COLUMN clock_s INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE outbox ADD COLUMN is_alert INTEGER NOT NULL DEFAULT 0",
    "UPDATE outbox SET size_bytes = length(body)",
    "CREATE INDEX outbox_facts ON outbox (sequence, size_bytes, clock_s, is_alert)",
)
# What is read of the index at a time.
_ROWS_EACH = 4096

Result = TypeVar("Result")


class SqliteState:
    """Satisfies `ports.Store`, and keeps the boot besides."""

    def __init__(self, directory: Path, connection: sqlite3.Connection) -> None:
        self._directory = directory
        self._connection = connection
        self._lock = threading.Lock()
        self._is_reserved = False

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open or make the state; raises StateError."""
        path = directory / DATABASE_NAME
        try:
            make_folder(directory)
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            # Bounds the WAL, which otherwise keeps the size of its busiest hour.
            connection.execute("PRAGMA journal_size_limit=1048576")
            connection.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES_MAX}")
            _check_schema(connection, path)
            connection.executescript(_SCHEMA)
            _migrate(connection)
        except (sqlite3.Error, OSError) as err:
            raise _state_error(f"opening the state in {path}", err) from err
        state = cls(directory, connection)
        state.make_reserve()
        return state

    @classmethod
    def open_to_read(cls, directory: Path) -> Self:
        """Open the state of a running or stopped agent and change nothing in it; raises StateNotFoundError."""
        path = directory / DATABASE_NAME
        if not path.is_file():
            raise StateNotFoundError(
                f"There is no agent state in {directory}.",
                hint="Give the directory that the agent runs with, as --state or SLIPWAY_AGENT_STATE.",
            )
        try:
            connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
            connection.execute("PRAGMA query_only=1")
            _check_schema(connection, path)
        except sqlite3.Error as err:
            raise _state_error(f"reading the state in {path}", err) from err
        return cls(directory, connection)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # Boot ------------------------------------------------------------------------------------------------------------

    def begin_boot(self, boot: str) -> bool:
        """Note that a process runs; returns whether the one before it ended without `end_boot`."""
        return self._in_need(lambda: self._begin_boot(boot))

    def _begin_boot(self, boot: str) -> bool:
        with self._transaction("noting the start"):
            is_unclean = self._fact("isRunning") == "1"
            self._set_fact("isRunning", "1")
            self._set_fact("boot", boot)
        return is_unclean

    def end_boot(self) -> None:
        def note() -> None:
            with self._transaction("noting the clean end"):
                self._set_fact("isRunning", "0")

        self._in_need(note)

    def note_alive(self) -> None:
        with self._transaction("writing to see whether it works"):
            self._set_fact("probe", "1")

    def boot(self) -> str:
        with self._reading("the boot"):
            return self._fact("boot") or ""

    def note_identity(self, device: str, module: str) -> None:
        """Remember who runs here, for the readers of a stopped agent's state."""

        def note() -> None:
            with self._transaction("noting the identity"):
                self._set_fact("device", device)
                self._set_fact("module", module)

        self._in_need(note)

    def identity(self) -> tuple[str, str]:
        with self._reading("the identity"):
            return self._fact("device") or "", self._fact("module") or ""

    # Models ----------------------------------------------------------------------------------------------------------

    def save_model(self, name: str, state: bytes, transition: bytes = b"") -> None:
        self._in_need(lambda: self._save_model(name, state, transition))

    def _save_model(self, name: str, state: bytes, transition: bytes) -> None:
        with self._transaction(f"journalling model {name}"):
            self._connection.execute("INSERT OR REPLACE INTO models VALUES (?, ?)", (name, state))
            if transition:
                cursor = self._connection.execute("INSERT INTO transitions (line) VALUES (?)", (transition,))
                oldest = (cursor.lastrowid or 0) - TRANSITIONS_MAX
                self._connection.execute("DELETE FROM transitions WHERE number <= ?", (oldest,))

    def models(self) -> dict[str, bytes]:
        with self._reading("the journal"):
            return dict(self._connection.execute("SELECT name, state FROM models ORDER BY name"))

    def transitions(self) -> list[bytes]:
        with self._reading("the history"):
            # The state of an older agent has none until a newer one opens it to write.
            is_there = self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'transitions'").fetchone()
            if not is_there:
                return []
            return [line for (line,) in self._connection.execute("SELECT line FROM transitions ORDER BY number")]

    # Outbox ----------------------------------------------------------------------------------------------------------

    def enqueue(self, messages: Sequence[Stored], evicted: Sequence[int]) -> None:
        left_out = frozenset(evicted)
        kept = [message for message in messages if message.sequence not in left_out]
        self._check_room(sum(len(message.body) for message in kept))
        with self._transaction(f"storing {len(messages)} messages"):
            self._connection.executemany(
                "INSERT INTO outbox (sequence, message_id, body, size_bytes, clock_s, is_alert) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [(m.sequence, m.message_id, m.body, len(m.body), m.clock_s, m.is_alert) for m in kept],
            )
            self._count("enqueued", len(messages))
            self._count_dropped("room", self._delete(evicted) + len(messages) - len(kept))
            if messages:
                self._set_counter("lastSequence", messages[-1].sequence)
                positions = [message.position for message in messages if message.position is not None]
                if positions:
                    self._set_fact("position", str(positions[-1]))

    def acknowledge(self, sequences: Sequence[int]) -> None:
        def delete() -> None:
            with self._transaction(f"deleting {len(sequences)} delivered messages"):
                self._count("acknowledged", self._delete(sequences))

        self._in_need(delete)

    def drop(self, sequences: Sequence[int], cause: DropCause) -> None:
        def delete() -> None:
            with self._transaction(f"dropping {len(sequences)} messages"):
                self._count_dropped(cause, self._delete(sequences))

        self._in_need(delete)

    def messages(self, sequences: Sequence[int]) -> list[Stored]:
        wanted = json.dumps(list(sequences))
        with self._reading("the outbox"):
            rows = self._connection.execute(
                "SELECT sequence, message_id, body, clock_s, is_alert FROM outbox "
                "WHERE sequence IN (SELECT value FROM json_each(?)) ORDER BY sequence",
                (wanted,),
            ).fetchall()
        return [
            Stored(sequence, message_id, body, clock_s=clock_s, is_alert=bool(is_alert))
            for sequence, message_id, body, clock_s, is_alert in rows
        ]

    def waiting(self) -> Iterator[tuple[int, int, int, bool]]:
        last = 0
        while True:
            with self._reading("the outbox"):
                rows = self._connection.execute(
                    "SELECT sequence, size_bytes, clock_s, is_alert FROM outbox INDEXED BY outbox_facts "
                    "WHERE sequence > ? ORDER BY sequence LIMIT ?",
                    (last, _ROWS_EACH),
                ).fetchall()
            if not rows:
                return
            yield from rows
            last = rows[-1][0]

    def counts(self) -> Counts:
        with self._reading("the counters"):
            values = dict(self._connection.execute("SELECT name, value FROM counters"))
        return Counts(
            enqueued=values.get("enqueued", 0),
            acknowledged=values.get("acknowledged", 0),
            dropped=values.get("dropped", 0),
            last_sequence=values.get("lastSequence", 0),
            dropped_room=values.get("droppedRoom", 0),
            dropped_age=values.get("droppedAge", 0),
            dropped_refused=values.get("droppedRefused", 0),
        )

    def position(self) -> int | None:
        with self._reading("the source's position"):
            value = self._fact("position")
        return None if value is None else int(value)

    def note_source(self, source: str) -> None:
        """Forget the position where it is of another source than this one."""
        with self._transaction("noting the source"):
            if self._fact("source") not in (None, source):
                self._connection.execute("DELETE FROM facts WHERE name = 'position'")
            self._set_fact("source", source)

    # Inside a transaction --------------------------------------------------------------------------------------------

    def _delete(self, sequences: Sequence[int]) -> int:
        """Delete and return how many there were, so that a message is never counted twice."""
        cursor = self._connection.executemany("DELETE FROM outbox WHERE sequence = ?", [(s,) for s in sequences])
        return max(0, cursor.rowcount)

    def _count(self, name: str, more: int) -> None:
        self._connection.execute(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            (name, more),
        )

    def _count_dropped(self, cause: DropCause, count: int) -> None:
        self._count("dropped", count)
        self._count(f"dropped{cause.capitalize()}", count)

    def _set_counter(self, name: str, value: int) -> None:
        self._connection.execute("INSERT OR REPLACE INTO counters VALUES (?, ?)", (name, value))

    def _fact(self, name: str) -> str | None:
        row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def _set_fact(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[None]:
        with self._lock:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._connection.execute("COMMIT")
                finally:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
            except sqlite3.Error as err:
                raise _state_error(doing, err) from err

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.Error as err:
                raise _state_error(f"reading {what}", err) from err

    # Reserve ---------------------------------------------------------------------------------------------------------

    def make_reserve(self) -> bool:
        """Set room aside while there is some; False where there is not, and the agent runs all the same."""
        path = self._directory / _RESERVE_NAME
        try:
            if not path.exists() or path.stat().st_size < _RESERVE_BYTES:
                path.write_bytes(b"\0" * _RESERVE_BYTES)
        except OSError:
            # A part of it would only be in the way.
            self._give_reserve()
        else:
            self._is_reserved = True
        return self._is_reserved

    def _give_reserve(self) -> None:
        self._is_reserved = False
        with suppress(OSError):
            (self._directory / _RESERVE_NAME).unlink()

    def _in_need(self, call: Callable[[], Result]) -> Result:
        """Do it; on a full disk in the room that was set aside. Raises StateError.

        There the WAL is moved into the database and begins anew in the place that it has. So deleting what was
        delivered needs no room from then on, and makes some inside the database.
        """
        try:
            return call()
        except StateError as err:
            if not err.is_full:
                raise
        self._give_reserve()
        with self._lock, suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(RESTART)")
        return call()

    def _check_room(self, arriving_bytes: int) -> None:
        """Readings do not take the last room: without it nothing could ever be deleted again. Raises StateError."""
        if self._is_reserved or self.make_reserve():
            return
        with self._reading("the room that is left"):
            free = self._connection.execute("PRAGMA freelist_count").fetchone()[0]
            page_bytes = self._connection.execute("PRAGMA page_size").fetchone()[0]
        if (free - _PAGES_BESIDE_MAX) * page_bytes < 2 * arriving_bytes:
            raise StateError(
                "Storing messages failed: the disk is full.",
                hint="Free some space: the agent goes on by itself.",
                is_full=True,
            )


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StateError(
            f"The state in {path} has schema version {version}; this agent knows version {SCHEMA_VERSION}.",
            hint="Run the agent that wrote it, or give another state directory.",
        )


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring the tables to this version in one transaction: a power cut leaves the old ones or the new ones."""
    if connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in _SECOND_SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _state_error(doing: str, err: Exception) -> StateError:
    text = str(err)
    is_full = "full" in text or "No space left" in text
    if is_full:
        hint = "Free some space: the agent goes on by itself."
    elif "not a database" in text or "malformed" in text:
        hint = "The file is damaged: move the state directory away and start again; the hub offers the models anew."
    else:
        hint = "Check that the state directory is on a working disk and belongs to the user of the agent."
    return StateError(f"{doing[0].upper()}{doing[1:]} failed: {text}.", hint=hint, is_full=is_full)
