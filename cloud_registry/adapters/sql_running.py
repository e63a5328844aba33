"""What ran where and when, in the SQL database: one row for each time a module had one thing loaded."""

from collections.abc import Mapping, Sequence

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    Row,
    String,
    Table,
    UniqueConstraint,
    and_,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from cloud_registry.adapters.schema import metadata
from cloud_registry.adapters.transactions import reading, writing
from cloud_registry.core.running import Change, Loaded, PeriodQuery, Place, RunningPeriod

running_periods = Table(
    "running_periods",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("device", String(128), nullable=False),
    Column("module", String(128), nullable=False),
    Column("model", String(63), nullable=False),
    # Counts the periods of one place from 1. Of two who record the same change one is refused by it.
    Column("number", Integer, nullable=False),
    # Both null: nothing was loaded.
    Column("version", Integer, nullable=True),
    Column("digest", String(71), nullable=True),
    Column("generation", BigInteger, nullable=True),
    Column("rollout", String(128), nullable=True),
    # Seconds since 1970. `until` is null while it lasts.
    Column("since", Double, nullable=False),
    Column("until", Double, nullable=True),
    Column("recorded_at", Double, nullable=False),
    UniqueConstraint("device", "module", "model", "number", name="running_periods_once"),
    Index("running_periods_by_model", "model", "since"),
    Index("running_periods_open", "until"),
)
_columns = running_periods.c


class SqlRunning:
    """A RunningLog."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def now_loaded(self) -> Mapping[Place, Loaded]:
        statement = select(running_periods).where(_columns.until.is_(None))
        with reading(self._engine) as connection:
            return {Place(row.device, row.module, row.model): _loaded(row) for row in connection.execute(statement)}

    def record(self, changes: Sequence[Change], now_s: float) -> int:
        try:
            with writing(self._engine) as connection:
                return sum(_record(connection, change, now_s) for change in changes)
        except IntegrityError:
            # Somebody recorded one of them at this moment: those are left out the second time.
            with writing(self._engine) as connection:
                return sum(_record(connection, change, now_s) for change in changes)

    def periods(self, query: PeriodQuery) -> Sequence[RunningPeriod]:
        where: list[ColumnElement[bool]] = []
        if query.model is not None:
            where.append(_columns.model == query.model)
        if query.version is not None:
            where.append(_columns.version == query.version)
        if query.device is not None:
            where.append(_columns.device == query.device)
        if query.at is not None:
            where += [_columns.since <= query.at, or_(_columns.until.is_(None), _columns.until > query.at)]
        newest = (_columns.since.desc(), _columns.id.desc())
        statement = select(running_periods).where(*where).order_by(*newest).limit(query.limit)
        with reading(self._engine) as connection:
            return [_period(row) for row in connection.execute(statement)]


def _record(connection: Connection, change: Change, now_s: float) -> bool:
    place = and_(
        _columns.device == change.place.device,
        _columns.module == change.place.module,
        _columns.model == change.place.model,
    )
    last = connection.execute(select(running_periods).where(place).order_by(_columns.number.desc()).limit(1)).first()
    loaded = change.loaded
    if last is None and loaded == Loaded():
        return False
    if last is not None and (last.version, last.digest) == (loaded.version, loaded.digest):
        return False
    # Clocks may go back; periods of one place follow one another all the same.
    since_s = change.since_s if last is None else max(change.since_s, last.since)
    if last is not None:
        connection.execute(update(running_periods).where(_columns.id == last.id).values(until=since_s))
    row = {
        "device": change.place.device,
        "module": change.place.module,
        "model": change.place.model,
        "number": 1 if last is None else last.number + 1,
        "version": loaded.version,
        "digest": loaded.digest,
        "generation": loaded.generation,
        "rollout": loaded.rollout,
        "since": since_s,
        "recorded_at": now_s,
    }
    connection.execute(insert(running_periods).values(row))
    return True


def _loaded(row: Row[tuple[object, ...]]) -> Loaded:
    return Loaded(row.version, row.digest, row.generation, row.rollout)


def _period(row: Row[tuple[object, ...]]) -> RunningPeriod:
    return RunningPeriod(
        device=row.device,
        module=row.module,
        model=row.model,
        version=row.version,
        digest=row.digest,
        generation=row.generation,
        rollout=row.rollout,
        since_s=row.since,
        until_s=row.until,
        recorded_at_s=row.recorded_at,
    )
