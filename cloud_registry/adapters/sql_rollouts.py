"""The event log of rollouts in a SQL database, with the leases and the claims on devices that go with it.

Plain SQL only, so that SQLite and PostgreSQL hold it alike. A rollout is an append-only list of events numbered from 1;
the primary key refuses a second event of the same number, so two writers cannot both go on from the same point.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from cloud_registry.adapters.database import metadata
from cloud_registry.adapters.sql_catalog import hold, hold_or_refuse
from cloud_registry.adapters.transactions import reading, writing
from cloud_registry.core.rollout import events as ev
from cloud_registry.core.rollout.documents import RolloutPlan
from cloud_registry.core.rollout.lease import Lease
from cloud_registry.errors import ConflictError, NotFoundError
from manifests.identity import ModelReference

# What ends a rollout: its devices are free for another one.
_ENDING_EVENTS = (ev.RolloutAborted, ev.RollbackEnded, ev.RolloutCompleted)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("number", Integer, nullable=False, unique=True),
    Column("model", String(63), nullable=False, index=True),
    Column("created_at", String(40), nullable=False),
    Column("ended_at", String(40), nullable=True),
)
rollout_events = Table(
    "rollout_events",
    metadata,
    Column("rollout_id", String(16), ForeignKey("rollouts.id"), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("at", String(40), nullable=False),
    # The event as JSON; its `type` says which.
    Column("event", Text, nullable=False),
)
# A device takes part in one unfinished rollout of a model at most.
rollout_devices = Table(
    "rollout_devices",
    metadata,
    Column("model", String(63), primary_key=True),
    Column("device_id", String(128), primary_key=True),
    Column("rollout_id", String(16), ForeignKey("rollouts.id"), nullable=False, index=True),
)
# The versions that a rollout carries or goes back to. They outlast it: whether it is over is told by `ended_at`.
rollout_versions = Table(
    "rollout_versions",
    metadata,
    Column("rollout_id", String(16), ForeignKey("rollouts.id"), primary_key=True),
    Column("model", String(63), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("is_carried", Boolean, nullable=False),
    Index("rollout_versions_by_version", "model", "version"),
)
rollout_leases = Table(
    "rollout_leases",
    metadata,
    Column("rollout_id", String(16), ForeignKey("rollouts.id"), primary_key=True),
    Column("owner", String(200), nullable=False),
    # Grows whenever the lease changes hands: what an earlier owner still writes is refused by it.
    Column("token", Integer, nullable=False),
    Column("expires_at", Float, nullable=False),
)
# "rollouts" counts rollouts, "generation/<model>" the generations given out for a model.
rollout_counters = Table(
    "rollout_counters",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("last", BigInteger, nullable=False),
)

# What a controller asks many times a tick, put together once.
_READ_EVENTS = (
    select(rollout_events.c.sequence, rollout_events.c.at, rollout_events.c.event)
    .where(rollout_events.c.rollout_id == bindparam("of"), rollout_events.c.sequence > bindparam("after"))
    .order_by(rollout_events.c.sequence)
)
_READ_LAST_SEQUENCE = select(func.max(rollout_events.c.sequence)).where(rollout_events.c.rollout_id == bindparam("of"))
_READ_LEASE = select(rollout_leases).where(rollout_leases.c.rollout_id == bindparam("of"))
_LOCK_TOKEN = select(rollout_leases.c.token).where(rollout_leases.c.rollout_id == bindparam("of")).with_for_update()


class SqlRollouts:
    """A RolloutLog."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def next_generation(self, model: str, generation_seen: int) -> int:
        """The generation that `create` would give now; it gives none away."""
        with reading(self._engine) as connection:
            return max(_counter(connection, f"generation/{model}"), generation_seen) + 1

    def create(self, plan: RolloutPlan, generation_seen: int, at: datetime) -> RolloutPlan:
        """Store a plan as a new rollout under the next id and generation, and claim its devices.

        `generation_seen` is the highest generation of the model in any twin. The generation after the plan's own is
        reserved for taking it back.

        Raises:
            ConflictError: a device takes part in an unfinished rollout of the same model.
            NotFoundError: a version that it carries was deleted since it was planned.
        """
        with writing(self._engine) as connection:
            number = _count_up(connection, "rollouts", at_least=0, by=1)
            last_generation = _count_up(connection, f"generation/{plan.model}", at_least=generation_seen, by=2)
            stored = msgspec.structs.replace(plan, id=f"r-{number:04d}", generation=last_generation - 1)
            row = {"id": stored.id, "number": number, "model": plan.model, "created_at": at.isoformat()}
            connection.execute(insert(rollouts).values(row))
            _claim(connection, stored)
            _name_versions(connection, stored)
            _insert_events(connection, stored.id, [ev.RolloutPlanned(plan=stored)], 0, at)
        return stored

    def claims(self, model: str) -> dict[str, str]:
        """Device -> the unfinished rollout of the model that it takes part in."""
        statement = select(rollout_devices).where(rollout_devices.c.model == model)
        with reading(self._engine) as connection:
            return {row.device_id: row.rollout_id for row in connection.execute(statement)}

    def read(self, rollout_id: str, after: int = 0) -> list[ev.RecordedEvent]:
        """Its events in order, those numbered above `after`; raises NotFoundError for an id that never was."""
        with reading(self._engine) as connection:
            rows = connection.execute(_READ_EVENTS, {"of": rollout_id, "after": after}).all()
        if not rows and after == 0:
            raise NotFoundError(
                f"there is no rollout {rollout_id}", hint="See which there are with: slipway rollout list"
            )
        return [
            ev.RecordedEvent(row.sequence, datetime.fromisoformat(row.at), ev.event_from_wire(json.loads(row.event)))
            for row in rows
        ]

    def append(
        self,
        rollout_id: str,
        events: Sequence[ev.RolloutEvent],
        *,
        expected_sequence: int,
        at: datetime,
        lease: Lease | None = None,
    ) -> None:
        """Add events after number `expected_sequence`, all or none.

        Raises:
            ConflictError: the log has moved on, or the lease has gone to another controller.
            NotFoundError: a version that devices are to be taken to was deleted.
        """
        if not events:
            return
        try:
            with writing(self._engine) as connection:
                _check_lease(connection, rollout_id, lease)
                _check_sequence(connection, rollout_id, expected_sequence)
                _insert_events(connection, rollout_id, events, expected_sequence, at)
                for event in events:
                    _follow_up(connection, rollout_id, event, at)
        except IntegrityError as err:
            raise _moved_on(rollout_id) from err

    def ids(self, *, active_only: bool = False) -> list[str]:
        """Ids of rollouts, oldest first."""
        statement = select(rollouts.c.id).order_by(rollouts.c.number)
        if active_only:
            statement = statement.where(rollouts.c.ended_at.is_(None))
        with reading(self._engine) as connection:
            return list(connection.scalars(statement))

    def acquire(self, rollout_id: str, owner: str, now: datetime, duration_s: float) -> Lease | None:
        """Take or prolong the lease; None while another controller holds it."""
        expires_at = now + timedelta(seconds=duration_s)
        table = rollout_leases
        with reading(self._engine) as connection:
            row = connection.execute(_READ_LEASE, {"of": rollout_id}).first()
        if row is not None:
            is_ours = row.owner == owner
            if row.expires_at > now.timestamp() and not is_ours:
                return None
            if is_ours and row.expires_at - now.timestamp() > duration_s / 2:
                # Fresh enough: a tick a second need not write to the disk each time.
                return Lease(rollout_id, owner, row.token, datetime.fromtimestamp(row.expires_at, UTC))
        with writing(self._engine) as connection:
            row = connection.execute(select(table).where(table.c.rollout_id == rollout_id).with_for_update()).first()
            if row is None:
                return _first_lease(connection, Lease(rollout_id, owner, 1, expires_at))
            if row.owner != owner and row.expires_at > now.timestamp():
                return None
            token = row.token if row.owner == owner else row.token + 1
            connection.execute(
                update(table)
                .where(table.c.rollout_id == rollout_id)
                .values(owner=owner, token=token, expires_at=expires_at.timestamp())
            )
        return Lease(rollout_id, owner, token, expires_at)

    def release(self, rollout_id: str, owner: str) -> None:
        """Let go of the lease, so that the next controller need not wait until it expires."""
        with writing(self._engine) as connection:
            connection.execute(
                update(rollout_leases)
                .where(rollout_leases.c.rollout_id == rollout_id, rollout_leases.c.owner == owner)
                .values(expires_at=0.0)
            )

    def controller(self, rollout_id: str, now: datetime) -> str | None:
        """Who holds the lease now; None where nobody drives the rollout."""
        table = rollout_leases
        statement = select(table.c.owner).where(table.c.rollout_id == rollout_id, table.c.expires_at > now.timestamp())
        with reading(self._engine) as connection:
            return connection.scalar(statement)


def _insert_events(
    connection: Connection, rollout_id: str, events: Sequence[ev.RolloutEvent], after: int, at: datetime
) -> None:
    rows = [
        {
            "rollout_id": rollout_id,
            "sequence": sequence,
            "at": at.isoformat(),
            "event": event.to_json().decode(),
        }
        for sequence, event in enumerate(events, start=after + 1)
    ]
    connection.execute(insert(rollout_events), rows)


def _check_sequence(connection: Connection, rollout_id: str, expected: int) -> None:
    if connection.scalar(_READ_LAST_SEQUENCE, {"of": rollout_id}) != expected:
        raise _moved_on(rollout_id)


def _moved_on(rollout_id: str) -> ConflictError:
    return ConflictError(
        f"rollout {rollout_id} changed while this was decided",
        hint=f"Look at it again with: slipway rollout status {rollout_id}",
    )


def _check_lease(connection: Connection, rollout_id: str, lease: Lease | None) -> None:
    if lease is None:
        return
    if connection.scalar(_LOCK_TOKEN, {"of": rollout_id}) != lease.token:
        raise ConflictError(
            f"another controller has taken over rollout {rollout_id}", hint="This one stops driving it."
        )


def _follow_up(connection: Connection, rollout_id: str, event: ev.RolloutEvent, at: datetime) -> None:
    if isinstance(event, ev.RollbackStarted):
        model = connection.execute(select(rollouts.c.model).where(rollouts.c.id == rollout_id)).scalar_one()
        _count_up(connection, f"generation/{model}", at_least=event.generation, by=0)
        _name_others(connection, rollout_id, model, {content.version for content in event.contents.values()})
    elif isinstance(event, _ENDING_EVENTS):
        connection.execute(update(rollouts).where(rollouts.c.id == rollout_id).values(ended_at=at.isoformat()))
        connection.execute(delete(rollout_devices).where(rollout_devices.c.rollout_id == rollout_id))


def _name_versions(connection: Connection, plan: RolloutPlan) -> None:
    """Note what the rollout names. What it carries must be there.

    What a device runs may not be registered here, or not any more: it is still its way back.
    """
    offered = (plan.offer(device) for device in plan.devices)
    carried = {content.version for content in offered if content is not None}
    versions = sorted({content.version for content in plan.contents.values()})
    for version in versions:
        if version in carried:
            hold_or_refuse(connection, ModelReference(plan.model, version), "no rollout was started")
        else:
            hold(connection, ModelReference(plan.model, version))
    rows = [
        {"rollout_id": plan.id, "model": plan.model, "version": version, "is_carried": version in carried}
        for version in versions
    ]
    if rows:
        connection.execute(insert(rollout_versions), rows)


def _name_others(connection: Connection, rollout_id: str, model: str, versions: set[int]) -> None:
    """Note what devices are taken to instead of what they ran before."""
    table = rollout_versions.c
    named = set(connection.scalars(select(table.version).where(table.rollout_id == rollout_id, table.model == model)))
    for version in sorted(versions - named):
        hold_or_refuse(connection, ModelReference(model, version), "nothing was taken back")
        row = {"rollout_id": rollout_id, "model": model, "version": version, "is_carried": False}
        connection.execute(insert(rollout_versions).values(row))


def _claim(connection: Connection, plan: RolloutPlan) -> None:
    rows = [{"model": plan.model, "device_id": device, "rollout_id": plan.id} for device in plan.devices]
    try:
        with connection.begin_nested():
            connection.execute(insert(rollout_devices), rows)
    except IntegrityError as err:
        raise _claimed(connection, plan) from err


def _claimed(connection: Connection, plan: RolloutPlan) -> ConflictError:
    statement = select(rollout_devices).where(rollout_devices.c.model == plan.model)
    rows = [row for row in connection.execute(statement) if row.device_id in plan.devices]
    other = rows[0].rollout_id
    devices = sorted(row.device_id for row in rows if row.rollout_id == other)
    named = ", ".join(devices[:3]) + (f" and {len(devices) - 3} more" if len(devices) > 3 else "")
    return ConflictError(
        f"rollout {other} of {plan.model} is not finished on {named}",
        hint=f"Go on with it: slipway rollout resume {other}. Or end it: slipway rollout abort {other}",
    )


def _first_lease(connection: Connection, lease: Lease) -> Lease | None:
    try:
        with connection.begin_nested():
            connection.execute(
                insert(rollout_leases).values(
                    rollout_id=lease.rollout_id,
                    owner=lease.owner,
                    token=lease.token,
                    expires_at=lease.expires_at.timestamp(),
                )
            )
    except IntegrityError:
        # Another controller was first.
        return None
    return lease


def _counter(connection: Connection, name: str) -> int:
    return connection.scalar(select(rollout_counters.c.last).where(rollout_counters.c.name == name)) or 0


def _count_up(connection: Connection, name: str, *, at_least: int, by: int) -> int:
    """Raise a counter to `at_least`, then by `by`; its row stays locked until the transaction ends."""
    table = rollout_counters
    row = select(table.c.last).where(table.c.name == name).with_for_update()
    last = connection.scalar(row)
    if last is None:
        try:
            with connection.begin_nested():
                connection.execute(insert(table).values(name=name, last=0))
        except IntegrityError:
            pass  # Another writer made the counter first; its row is read below.
        last = connection.scalar(row) or 0
    value = max(int(last), at_least) + by
    connection.execute(update(table).where(table.c.name == name).values(last=value))
    return value
