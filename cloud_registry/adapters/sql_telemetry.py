"""Telemetry in the SQL database: envelopes once each, the copies counted, and how far each stream was read."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError

from cloud_registry.adapters.database import metadata
from cloud_registry.adapters.transactions import reading, writing
from cloud_registry.errors import ConflictError
from cloud_registry.ports import StoreCounts, StreamPosition, TelemetryEvent, TelemetryRow, UnreadableEvent
from manifests.telemetry import Envelope

# Rows that are in memory at once while a table is walked through.
ROWS_EACH = 1000

_DEVICE = String(128)
telemetry_envelopes = Table(
    "telemetry_envelopes",
    metadata,
    # The order of arrival here: two streams, or a stream begun anew, count for themselves.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("device", _DEVICE, nullable=False),
    Column("module", _DEVICE, nullable=False),
    Column("boot", String(128), nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("enqueued_time", String(40), nullable=False),
    Column("model", String(128), nullable=False),
    Column("version", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("confidence", Float),
    # The Envelope as JSON.
    Column("envelope", Text, nullable=False),
    UniqueConstraint("device", "module", "boot", "sequence", name="telemetry_envelopes_once"),
    Index("telemetry_envelopes_in_order", "device", "module", "sequence"),
)
telemetry_duplicates = Table(
    "telemetry_duplicates",
    metadata,
    Column("device", _DEVICE, primary_key=True),
    Column("module", _DEVICE, primary_key=True),
    Column("boot", String(128), primary_key=True),
    Column("count", BigInteger, nullable=False),
)
telemetry_unreadable = Table(
    "telemetry_unreadable",
    metadata,
    Column("device", _DEVICE, primary_key=True),
    Column("module", _DEVICE, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("last_sequence", BigInteger, nullable=False),
    Column("last_reason", Text, nullable=False),
)
telemetry_positions = Table(
    "telemetry_positions",
    metadata,
    Column("source", String(512), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("mark", String(128), nullable=False),
)

_Key = tuple[str, str, str, int]


class SqlTelemetry:
    """A TelemetryArchive."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def position(self, source: str) -> StreamPosition:
        columns = (telemetry_positions.c.sequence, telemetry_positions.c.mark)
        with reading(self._engine) as connection:
            row = connection.execute(select(*columns).where(telemetry_positions.c.source == source)).first()
        return StreamPosition() if row is None else StreamPosition(row.sequence, row.mark)

    def store(
        self,
        source: str,
        expected: StreamPosition,
        reached: StreamPosition,
        envelopes: Sequence[tuple[TelemetryEvent, Envelope]],
        unreadable: Sequence[UnreadableEvent],
    ) -> StoreCounts:
        with writing(self._engine) as connection:
            # First, since it locks the row: of two collectors the second one finds the position moved.
            _move(connection, source, expected, reached)
            fresh, copies = _split(connection, envelopes)
            if fresh:
                connection.execute(insert(telemetry_envelopes), list(fresh.values()))
            for (device, module, boot), count in Counter(key[:3] for key in copies).items():
                _add(connection, telemetry_duplicates, {"device": device, "module": module, "boot": boot}, {}, count)
            for event in unreadable:
                last = {"last_sequence": event.sequence, "last_reason": event.reason}
                _add(connection, telemetry_unreadable, {"device": event.device, "module": event.module}, last, 1)
        return StoreCounts(len(fresh), len(copies), len(unreadable))

    def rows(self) -> Iterator[TelemetryRow]:
        table = telemetry_envelopes.c
        columns = (
            table.device,
            table.module,
            table.boot,
            table.sequence,
            table.model,
            table.version,
            table.kind,
            table.confidence,
        )
        statement = select(*columns).order_by(table.device, table.module, table.sequence, table.id)
        with reading(self._engine) as connection:
            for row in connection.execution_options(yield_per=ROWS_EACH).execute(statement):
                yield TelemetryRow(*row)

    def duplicates(self) -> Mapping[tuple[str, str, str], int]:
        with reading(self._engine) as connection:
            rows = connection.execute(select(telemetry_duplicates)).all()
        return {(row.device, row.module, row.boot): row._mapping["count"] for row in rows}

    def unreadable(self) -> Mapping[tuple[str, str], int]:
        with reading(self._engine) as connection:
            rows = connection.execute(select(telemetry_unreadable)).all()
        return {(row.device, row.module): row._mapping["count"] for row in rows}

    def count(self, device: str | None = None) -> int:
        statement = select(func.count()).select_from(telemetry_envelopes)
        if device is not None:
            statement = statement.where(telemetry_envelopes.c.device == device)
        with reading(self._engine) as connection:
            return connection.scalar(statement) or 0

    def envelopes(self, device: str | None = None, limit: int | None = None) -> Iterator[Envelope]:
        table = telemetry_envelopes.c
        statement = select(table.id, table.envelope)
        if device is not None:
            statement = statement.where(table.device == device)
        if limit is not None:
            newest = statement.order_by(table.id.desc()).limit(limit).subquery()
            statement = select(newest.c.id, newest.c.envelope).order_by(newest.c.id)
        else:
            statement = statement.order_by(table.id)
        with reading(self._engine) as connection:
            for row in connection.execution_options(yield_per=ROWS_EACH).execute(statement):
                yield Envelope.from_json(row.envelope)


def _move(connection: Connection, source: str, expected: StreamPosition, reached: StreamPosition) -> None:
    table = telemetry_positions
    place = {"sequence": reached.sequence, "mark": reached.mark}
    moved = (
        update(table)
        .where(table.c.source == source, table.c.sequence == expected.sequence, table.c.mark == expected.mark)
        .values(**place)
    )
    if connection.execute(moved).rowcount:
        return
    other = ConflictError(
        f"another collector is reading {source} into this catalog",
        hint="One is enough. Stop the other one, or let it do the work.",
    )
    if expected != StreamPosition():
        raise other
    try:
        with connection.begin_nested():
            connection.execute(insert(table).values(source=source, **place))
    except IntegrityError as err:
        raise other from err


def _split(
    connection: Connection, envelopes: Sequence[tuple[TelemetryEvent, Envelope]]
) -> tuple[dict[_Key, dict[str, Any]], list[_Key]]:
    """Rows to insert by their key, and the keys of copies."""
    table = telemetry_envelopes.c
    keys = [(event.device_id, event.module_id, envelope.boot, envelope.sequence) for event, envelope in envelopes]
    known: set[_Key] = set()
    for start in range(0, len(keys), 200):
        statement = select(table.device, table.module, table.boot, table.sequence).where(
            tuple_(table.device, table.module, table.boot, table.sequence).in_(keys[start : start + 200])
        )
        known |= {(row.device, row.module, row.boot, row.sequence) for row in connection.execute(statement)}
    fresh: dict[_Key, dict[str, Any]] = {}
    copies: list[_Key] = []
    for key, (event, envelope) in zip(keys, envelopes, strict=True):
        if key in known or key in fresh:
            copies.append(key)
        else:
            fresh[key] = _row(event, envelope)
    return fresh, copies


def _row(event: TelemetryEvent, envelope: Envelope) -> dict[str, Any]:
    return {
        "device": event.device_id,
        "module": event.module_id,
        "boot": envelope.boot,
        "sequence": envelope.sequence,
        "enqueued_time": event.enqueued_time,
        "model": envelope.model,
        "version": envelope.version,
        "kind": envelope.kind,
        "confidence": envelope.confidence,
        "envelope": envelope.to_json().decode(),
    }


def _add(connection: Connection, table: Table, key: dict[str, str], values: dict[str, Any], count: int) -> None:
    """Count so many more. The position's row is locked, so nobody else counts at the same time."""
    counted = update(table).values(count=table.c["count"] + count, **values)
    for name, value in key.items():
        counted = counted.where(table.c[name] == value)
    if connection.execute(counted).rowcount == 0:
        connection.execute(insert(table).values(count=count, **key, **values))
