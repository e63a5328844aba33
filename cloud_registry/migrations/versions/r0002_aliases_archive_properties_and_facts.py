"""Aliases, properties, the archive, facts to search by, and a record of what ran where.

Tags move from a table of their own to their version and, as facts, to the table that is searched.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from alembic import op
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    insert,
    select,
    update,
)

revision = "0002"
down_revision = "0001"

ROWS_EACH = 500


def upgrade() -> None:
    op.add_column("model_versions", Column("tags", Text, nullable=False, server_default="{}"))
    op.add_column("model_versions", Column("properties", Text, nullable=False, server_default="{}"))
    op.add_column("model_versions", Column("archived", Boolean, nullable=False, server_default=false()))
    with op.batch_alter_table("model_files") as files:
        files.alter_column("target", existing_type=String(128), type_=String(640), existing_nullable=False)
    _create_alias_tables()
    _create_running_periods()
    facts = op.create_table(
        "model_facts",
        Column("name", String(63), primary_key=True),
        Column("version", Integer, primary_key=True),
        Column("field", String(140), primary_key=True),
        Column("position", Integer, primary_key=True),
        Column("word", String(80), nullable=True),
        Column("number", Double, nullable=True),
        ForeignKeyConstraint(
            ["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"
        ),
    )
    _move_tags(op.get_bind(), facts)
    # After the rows, which is quicker.
    op.create_index("model_facts_by_word", "model_facts", ["field", "word", "name", "version"])
    op.create_index("model_facts_by_number", "model_facts", ["field", "number", "name", "version"])
    op.drop_table("model_tags")


def _create_alias_tables() -> None:
    op.create_table(
        "model_aliases",
        Column("name", String(63), primary_key=True),
        Column("alias", String(63), primary_key=True),
        Column("version", Integer, nullable=False),
        Column("moved_at", String(40), nullable=False),
        ForeignKeyConstraint(["name", "version"], ["model_versions.name", "model_versions.version"]),
    )
    op.create_index("model_aliases_by_version", "model_aliases", ["name", "version"])
    op.create_table(
        "model_alias_moves",
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("name", String(63), nullable=False),
        Column("alias", String(63), nullable=False),
        Column("before", Integer, nullable=True),
        Column("after", Integer, nullable=True),
        Column("moved_at", String(40), nullable=False),
    )
    op.create_index("model_alias_moves_by_name", "model_alias_moves", ["name", "id"])


def _create_running_periods() -> None:
    op.create_table(
        "running_periods",
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("device", String(128), nullable=False),
        Column("module", String(128), nullable=False),
        Column("model", String(63), nullable=False),
        Column("number", Integer, nullable=False),
        Column("version", Integer, nullable=True),
        Column("digest", String(71), nullable=True),
        Column("generation", BigInteger, nullable=True),
        Column("rollout", String(128), nullable=True),
        Column("since", Double, nullable=False),
        Column("until", Double, nullable=True),
        Column("recorded_at", Double, nullable=False),
        UniqueConstraint("device", "module", "model", "number", name="running_periods_once"),
    )
    op.create_index("running_periods_by_model", "running_periods", ["model", "since"])
    op.create_index("running_periods_open", "running_periods", ["until"])


def _move_tags(connection: Connection, facts: Table) -> None:
    """Give each version its tags and its facts, as far as a manifest of revision 0001 knows them."""
    old = MetaData()
    versions = Table("model_versions", old, autoload_with=connection)
    tags = Table("model_tags", old, autoload_with=connection)
    by_version: dict[tuple[str, int], dict[str, str]] = {}
    for row in connection.execute(select(tags).order_by(tags.c.key)):
        by_version.setdefault((row.name, row.version), {})[row.key] = row.value
    for (name, version), found in by_version.items():
        one = update(versions).where(versions.c.name == name, versions.c.version == version)
        connection.execute(one.values(tags=json.dumps(found, ensure_ascii=False)))
    rows: list[dict[str, Any]] = []
    for name, version, manifest in connection.execute(select(versions.c.name, versions.c.version, versions.c.manifest)):
        key = {"name": name, "version": version}
        rows += [{**key, **fact} for fact in _facts(json.loads(manifest), by_version.get((name, version), {}))]
    for start in range(0, len(rows), ROWS_EACH):
        connection.execute(insert(facts), rows[start : start + ROWS_EACH])


def _facts(manifest: dict[str, Any], tags: dict[str, str]) -> Iterator[dict[str, Any]]:
    def text(field: str, value: str, position: int = 0) -> dict[str, Any]:
        number = float(value) if _is_number(value) else None
        return {"field": field, "position": position, "word": _word(value), "number": number}

    def number(field: str, value: float, position: int = 0) -> dict[str, Any]:
        return {"field": field, "position": position, "word": None, "number": float(value)}

    artifacts = manifest["artifacts"]
    for position, artifact in enumerate(artifacts):
        yield text("format", artifact["format"], position)
    yield number("size", sum(artifact["size"] for artifact in artifacts))
    latencies = [artifact["latencyMedianMs"] for artifact in artifacts if artifact.get("latencyMedianMs") is not None]
    for position, latency in enumerate(latencies):
        yield number("latency", latency, position)
    if manifest.get("golden"):
        yield number("golden", manifest["golden"]["samples"])
    yield number("created", datetime.fromisoformat(manifest["createdAt"]).timestamp())
    for key, value in manifest.get("metrics", {}).items():
        yield number(f"metric.{key}", value)
    for key, value in tags.items():
        yield text(f"tag.{key}", value)


def _is_number(value: str) -> bool:
    import re

    return re.fullmatch(r"[-+]?\d{1,30}(\.\d{1,30})?([eE][-+]?\d{1,3})?", value) is not None


def _word(value: str) -> str:
    """The value itself, or what stands for one that is too long or unprintable for an index."""
    if len(value) <= 64 and value.isprintable():
        return value
    return value[:8].encode("ascii", "replace").decode() + ":" + hashlib.sha256(value.encode()).hexdigest()
