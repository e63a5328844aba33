"""The database's rows as a file of compressed JSON lines, which SQLite and PostgreSQL write and read alike.

The first line names the revision of the tables; each other line is a table's name and one of its rows. Tables are in
the order in which rows may be inserted. The same rows make the same bytes.
"""

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Integer, MetaData, Table, func, insert, select, text

from cloud_registry.adapters.schema import declared_tables, known_revisions, migrate
from cloud_registry.adapters.transactions import database_words, reading, writing
from cloud_registry.errors import ConflictError, RegistryError
from cloud_registry.ports import DumpFacts, ProgressListener

COMPRESSION_LEVEL = 3
ROWS_EACH = 500
_REVISIONS = "alembic_version"


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    revision: str
    tables: list[str]


class SqlDump:
    """A DatabaseDump."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def write(self, path: Path, on_progress: ProgressListener | None = None) -> DumpFacts:
        tables = {str(table.name): table for table in declared_tables().sorted_tables}
        head = _Head(known_revisions()[-1], list(tables))
        rows = dict.fromkeys(tables, 0)
        with (
            path.open("wb") as target,
            # A fixed instant, so that equal rows are equal bytes.
            gzip.GzipFile("", "wb", COMPRESSION_LEVEL, target, mtime=0) as file,
            self._snapshot() as connection,
        ):
            file.write(msgspec.json.encode(head) + b"\n")
            for number, (name, table) in enumerate(tables.items()):
                if on_progress is not None:
                    on_progress(f"reading {name}", number, len(tables))
                for row in _rows_of(connection, table):
                    file.write(msgspec.json.encode([name, row]) + b"\n")
                    rows[name] += 1
        return DumpFacts(head.revision, rows)

    def is_empty(self) -> bool:
        with reading(self._engine) as connection:
            return _filled_table(connection) is None

    def load(self, path: Path, on_progress: ProgressListener | None = None) -> None:
        latest = known_revisions()[-1]
        with path.open("rb") as source, writing(self._engine) as connection:
            filled = _filled_table(connection)
            if filled is not None:
                raise ConflictError(
                    f"the database is not empty: {filled} holds rows",
                    hint="Restore into a new one: set --home or SLIPWAY_DATABASE to a place where there is none yet.",
                )
            lines = _lines(source)
            head = _head_of(next(lines, b""))
            if head.revision not in known_revisions():
                raise RegistryError(
                    f"the backup is of revision {head.revision}, and this Slipway knows revisions up to {latest}",
                    hint="Restore it with the version of Slipway that made it, or a later one.",
                )
            if head.revision != latest:
                _begin_at(connection, head.revision)
            _insert_all(connection, head, lines, on_progress)
            if head.revision != latest:
                migrate(connection, latest)

    def problems(self) -> Sequence[str]:
        if self._engine.dialect.name != "sqlite":
            return ()
        with reading(self._engine) as connection:
            said = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check")]
            found = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        orphans = [f"a row of {row[0]} names one of {row[2]} that is not there" for row in found]
        return [line for line in said if line != "ok"] + orphans

    @contextmanager
    def _snapshot(self) -> Iterator[Connection]:
        """One view of all tables, whatever is written meanwhile."""
        if self._engine.dialect.name == "sqlite":
            with reading(self._engine) as connection:
                yield connection
            return
        with database_words(), self._engine.connect() as connection:
            yield connection.execution_options(isolation_level="REPEATABLE READ")


def _rows_of(connection: Connection, table: Table) -> Iterator[dict[str, Any]]:
    statement = select(table).order_by(*table.primary_key.columns).execution_options(yield_per=ROWS_EACH)
    for row in connection.execute(statement):
        yield {str(column.name): row[number] for number, column in enumerate(table.columns)}


def _filled_table(connection: Connection) -> str | None:
    for table in declared_tables().sorted_tables:
        if connection.execute(select(table).limit(1)).first() is not None:
            return str(table.name)
    return None


def _lines(source: Any) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=source) as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as err:
        raise RegistryError(f"the dump of the database is damaged: {err}") from err


def _head_of(line: bytes) -> _Head:
    try:
        return msgspec.json.decode(line, type=_Head)
    except msgspec.DecodeError as err:
        raise RegistryError(f"the dump of the database has no head: {err}") from err


def _begin_at(connection: Connection, revision: str) -> None:
    """Make the empty tables those of an earlier revision."""
    declared_tables().drop_all(connection)
    connection.execute(text(f"DROP TABLE IF EXISTS {_REVISIONS}"))
    migrate(connection, revision)


def _insert_all(
    connection: Connection, head: _Head, lines: Iterator[bytes], on_progress: ProgressListener | None
) -> None:
    tables = MetaData()
    tables.reflect(connection)
    known = {name: tables.tables[name] for name in head.tables if name in tables.tables}
    decoder = msgspec.json.Decoder(tuple[str, dict[str, Any]])
    pending: list[dict[str, Any]] = []
    current = ""
    for line in lines:
        try:
            name, row = decoder.decode(line)
        except msgspec.DecodeError as err:
            raise RegistryError(f"the dump of the database has a row that is none: {err}") from err
        if name not in known or set(row) - set(known[name].columns.keys()):
            raise RegistryError(f"the dump of the database has a row that does not fit table {name[:80]!r}")
        if pending and (name != current or len(pending) >= ROWS_EACH):
            connection.execute(insert(known[current]), pending)
            pending = []
        if name != current and on_progress is not None:
            on_progress(f"writing {name}", list(known).index(name), len(known))
        current = name
        pending.append(row)
    if pending:
        connection.execute(insert(known[current]), pending)
    _set_counters(connection, known)


def _set_counters(connection: Connection, tables: Mapping[str, Table]) -> None:
    """Let PostgreSQL count on behind the ids that were inserted; SQLite does so by itself."""
    if connection.dialect.name != "postgresql":
        return
    for name, table in tables.items():
        for column in table.primary_key.columns:
            if not isinstance(column.type, Integer):
                continue
            sequence = connection.scalar(select(func.pg_get_serial_sequence(name, column.name)))
            highest = connection.scalar(select(func.max(column)))
            if sequence is not None and highest is not None:
                connection.execute(select(func.setval(sequence, highest)))
