"""What ran where and when, in the SQL database: one row for each time a module had one version loaded."""

from sqlalchemy import BigInteger, Column, Double, Index, Integer, String, Table, UniqueConstraint

from cloud_registry.adapters.schema import metadata

running_periods = Table(
    "running_periods",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("device", String(128), nullable=False),
    Column("module", String(128), nullable=False),
    Column("model", String(63), nullable=False),
    # Counts the periods of one model in one module, from 1.
    Column("number", Integer, nullable=False),
    # Both null: nothing of the model was loaded.
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
