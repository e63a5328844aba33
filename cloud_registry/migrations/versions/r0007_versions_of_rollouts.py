"""Which model versions each rollout names, so that one transaction can tell who needs a version and delete it."""

import json
from collections.abc import Iterator
from typing import Any

from alembic import op
from sqlalchemy import Boolean, Column, Connection, ForeignKey, Integer, MetaData, String, Table, insert, select

revision = "0007"
down_revision = "0006"

ROWS_EACH = 500


def upgrade() -> None:
    named = op.create_table(
        "rollout_versions",
        Column("rollout_id", String(16), ForeignKey("rollouts.id"), primary_key=True),
        Column("model", String(63), primary_key=True),
        Column("version", Integer, primary_key=True, autoincrement=False),
        Column("is_carried", Boolean, nullable=False),
    )
    rows = list(_rows(op.get_bind()))
    for start in range(0, len(rows), ROWS_EACH):
        op.get_bind().execute(insert(named), rows[start : start + ROWS_EACH])
    op.create_index("rollout_versions_by_version", "rollout_versions", ["model", "version"])


def _rows(connection: Connection) -> Iterator[dict[str, Any]]:
    """What the events of each rollout name: its plan, and what devices were taken back to instead."""
    events = Table("rollout_events", MetaData(), autoload_with=connection)
    rollout_id, model = None, ""
    named: dict[int, bool] = {}
    ordered = select(events.c.rollout_id, events.c.event).order_by(events.c.rollout_id, events.c.sequence)
    for row in connection.execute(ordered):
        if row.rollout_id != rollout_id:
            yield from _named_by(rollout_id, model, named)
            rollout_id, model, named = row.rollout_id, "", {}
        event = json.loads(row.event)
        plan = event.get("plan", {})
        contents = {**plan.get("contents", {}), **event.get("contents", {})}
        carried = {device.get("offer") for device in plan.get("devices", {}).values()}
        model = plan.get("model", model)
        for key, content in contents.items():
            named[content["version"]] = named.get(content["version"], False) or key in carried
    yield from _named_by(rollout_id, model, named)


def _named_by(rollout_id: str | None, model: str, named: dict[int, bool]) -> Iterator[dict[str, Any]]:
    for version, is_carried in sorted(named.items()):
        yield {"rollout_id": rollout_id, "model": model, "version": version, "is_carried": is_carried}
