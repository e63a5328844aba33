"""Deltas of model versions."""

from alembic import op
from sqlalchemy import BigInteger, Column, ForeignKeyConstraint, Integer, String

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "model_deltas",
        Column("name", String(63), primary_key=True),
        Column("version", Integer, primary_key=True),
        Column("result_digest", String(71), primary_key=True),
        Column("base_digest", String(71), primary_key=True),
        Column("target", String(640), nullable=False),
        Column("digest", String(71)),
        Column("size_bytes", BigInteger, nullable=False),
        ForeignKeyConstraint(
            ["name", "version"], ["model_versions.name", "model_versions.version"], ondelete="CASCADE"
        ),
    )
