"""API keys in the catalog's database: a secret's digest, never the secret."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Column, Engine, Row, String, Table, Text, insert, select, update

from cloud_registry.adapters.database import metadata
from cloud_registry.adapters.transactions import reading, writing
from cloud_registry.ports import ApiKey, Role

# Instants are ISO 8601 in UTC, so that they sort as text and are alike in every database.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("roles", String(128), nullable=False),
    # Patterns of device ids, one a line: no id holds a line break.
    Column("devices", Text, nullable=False),
    Column("secret_digest", String(64), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("expires_at", String(32)),
    Column("revoked_at", String(32)),
)


class SqlKeys:
    """An ApiKeyStore."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, key: ApiKey) -> None:
        row = {
            "id": key.id,
            "name": key.name,
            "roles": " ".join(sorted(key.roles)),
            "devices": "\n".join(key.devices),
            "secret_digest": key.secret_digest,
            "created_at": _text(key.created_at),
            "expires_at": _text(key.expires_at),
            "revoked_at": _text(key.revoked_at),
        }
        with writing(self._engine) as connection:
            connection.execute(insert(api_keys).values(row))

    def find(self, key_id: str) -> ApiKey | None:
        with reading(self._engine) as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.id == key_id)).first()
        return None if row is None else _key(row)

    def all(self) -> Sequence[ApiKey]:
        with reading(self._engine) as connection:
            return [_key(row) for row in connection.execute(select(api_keys).order_by(api_keys.c.created_at))]

    def revoke(self, key_id: str, at: datetime) -> bool:
        with writing(self._engine) as connection:
            if connection.execute(select(api_keys.c.id).where(api_keys.c.id == key_id)).first() is None:
                return False
            unrevoked = (api_keys.c.id == key_id) & api_keys.c.revoked_at.is_(None)
            connection.execute(update(api_keys).where(unrevoked).values(revoked_at=_text(at)))
            return True

    def has_any(self) -> bool:
        with reading(self._engine) as connection:
            return connection.execute(select(api_keys.c.id).limit(1)).first() is not None


def _key(row: Row[tuple[str, ...]]) -> ApiKey:
    created_at = _instant(row.created_at)
    assert created_at is not None
    return ApiKey(
        id=row.id,
        name=row.name,
        roles=frozenset(Role(name) for name in row.roles.split()),
        secret_digest=row.secret_digest,
        created_at=created_at,
        devices=tuple(row.devices.splitlines()),
        expires_at=_instant(row.expires_at),
        revoked_at=_instant(row.revoked_at),
    )


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat(timespec="milliseconds")


def _instant(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
