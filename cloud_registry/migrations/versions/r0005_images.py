"""Built images: what each is made of, and which model version it holds."""

from alembic import op
from sqlalchemy import Column, Integer, String, Text

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "images",
        Column("name", String(400), primary_key=True),
        Column("digest", String(80), primary_key=True),
        Column("model", String(63), nullable=False),
        Column("version", Integer, nullable=False),
        Column("created_at", String(40), nullable=False),
        Column("record", Text, nullable=False),
    )
    op.create_index("images_by_model", "images", ["model", "version"])
