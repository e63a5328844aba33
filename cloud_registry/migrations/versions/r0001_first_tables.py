"""The tables as they were before there were revisions.

Databases of that time say nothing of a revision. Whatever of these tables is there is taken over as it is.
"""

from alembic import op
from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

revision = "0001"
down_revision = None


def upgrade() -> None:
    metadata = MetaData()
    _declare_models(metadata)
    _declare_rollouts(metadata)
    _declare_telemetry(metadata)
    metadata.create_all(op.get_bind(), checkfirst=True)


def _declare_models(metadata: MetaData) -> None:
    Table(
        "model_names",
        metadata,
        Column("name", String(63), primary_key=True),
        Column("last_version", Integer, nullable=False),
    )
    Table(
        "model_versions",
        metadata,
        Column("name", String(63), ForeignKey("model_names.name"), primary_key=True),
        Column("version", Integer, primary_key=True),
        Column("manifest", Text, nullable=False),
    )
    Table(
        "model_tags",
        metadata,
        Column("name", String(63), primary_key=True),
        Column("version", Integer, primary_key=True),
        Column("key", String(128), primary_key=True, index=True),
        Column("value", Text, nullable=False),
        ForeignKeyConstraint(
            ["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"
        ),
    )
    Table(
        "model_files",
        metadata,
        Column("target", String(128), primary_key=True),
        Column("name", String(63), nullable=False),
        Column("version", Integer, nullable=False),
        Column("digest", String(71), nullable=False, index=True),
        Column("size_bytes", BigInteger, nullable=False),
        ForeignKeyConstraint(
            ["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"
        ),
    )


def _declare_rollouts(metadata: MetaData) -> None:
    Table(
        "rollouts",
        metadata,
        Column("id", String(16), primary_key=True),
        Column("number", Integer, nullable=False, unique=True),
        Column("model", String(63), nullable=False, index=True),
        Column("created_at", String(40), nullable=False),
        Column("ended_at", String(40), nullable=True),
    )
    Table(
        "rollout_events",
        metadata,
        Column("rollout_id", String(16), ForeignKey("rollouts.id"), primary_key=True),
        Column("sequence", Integer, primary_key=True),
        Column("at", String(40), nullable=False),
        Column("event", Text, nullable=False),
    )
    Table(
        "rollout_devices",
        metadata,
        Column("model", String(63), primary_key=True),
        Column("device_id", String(128), primary_key=True),
        Column("rollout_id", String(16), ForeignKey("rollouts.id"), nullable=False, index=True),
    )
    Table(
        "rollout_leases",
        metadata,
        Column("rollout_id", String(16), ForeignKey("rollouts.id"), primary_key=True),
        Column("owner", String(200), nullable=False),
        Column("token", Integer, nullable=False),
        Column("expires_at", Float, nullable=False),
    )
    Table(
        "rollout_counters",
        metadata,
        Column("name", String(80), primary_key=True),
        Column("last", BigInteger, nullable=False),
    )


def _declare_telemetry(metadata: MetaData) -> None:
    Table(
        "telemetry_envelopes",
        metadata,
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("device", String(128), nullable=False),
        Column("module", String(128), nullable=False),
        Column("boot", String(128), nullable=False),
        Column("sequence", BigInteger, nullable=False),
        Column("enqueued_time", String(40), nullable=False),
        Column("model", String(128), nullable=False),
        Column("version", Integer, nullable=False),
        Column("kind", String(16), nullable=False),
        Column("confidence", Float),
        Column("envelope", Text, nullable=False),
        UniqueConstraint("device", "module", "boot", "sequence", name="telemetry_envelopes_once"),
        Index("telemetry_envelopes_in_order", "device", "module", "sequence"),
    )
    Table(
        "telemetry_duplicates",
        metadata,
        Column("device", String(128), primary_key=True),
        Column("module", String(128), primary_key=True),
        Column("boot", String(128), primary_key=True),
        Column("count", BigInteger, nullable=False),
    )
    Table(
        "telemetry_unreadable",
        metadata,
        Column("device", String(128), primary_key=True),
        Column("module", String(128), primary_key=True),
        Column("count", BigInteger, nullable=False),
        Column("last_sequence", BigInteger, nullable=False),
        Column("last_reason", Text, nullable=False),
    )
    Table(
        "telemetry_positions",
        metadata,
        Column("source", String(512), primary_key=True),
        Column("sequence", BigInteger, nullable=False),
        Column("mark", String(128), nullable=False),
    )
