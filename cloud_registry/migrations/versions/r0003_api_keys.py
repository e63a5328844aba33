"""Keys of the registry's server."""

from alembic import op
from sqlalchemy import Column, String, Text

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "api_keys",
        Column("id", String(32), primary_key=True),
        Column("name", String(128), nullable=False),
        Column("roles", String(128), nullable=False),
        Column("devices", Text, nullable=False),
        Column("secret_digest", String(64), nullable=False),
        Column("created_at", String(32), nullable=False),
        Column("expires_at", String(32)),
        Column("revoked_at", String(32)),
    )
