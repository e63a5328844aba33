"""Brings a database to the tables that this code knows: a new one at once, an older one by the revisions it lacks.

A database's revision is in Alembic's own table. Alembic itself is imported only where there is something to migrate:
an empty database gets all tables as they are declared, which a test holds to be what the revisions lead to.
"""

import logging
import threading
from importlib import import_module
from pathlib import Path

from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, insert, inspect, select, text

from cloud_registry.errors import RegistryError

MIGRATIONS = Path(__file__).parents[1] / "migrations"
# Whoever declares tables; a new adapter with tables is named here and brings a revision.
TABLE_MODULES = (
    "sql_catalog",
    "sql_deltas",
    "sql_images",
    "sql_keys",
    "sql_recipes",
    "sql_rollouts",
    "sql_running",
    "sql_telemetry",
)
# Any number that nobody else locks in the same database.
_LOCK = 5_193_771_202

# Every table of the registry; each adapter declares its own on it.
metadata = MetaData()

# As Alembic makes it.
_revisions = Table(
    "alembic_version", MetaData(), Column("version_num", String(32), primary_key=True, key="revision", nullable=False)
)
# Alembic keeps what it works on in module variables.
_alembic_lock = threading.Lock()
_log = logging.getLogger("slipway.database")


def declared_tables() -> MetaData:
    """Every table of the registry, whichever adapters the caller uses."""
    for name in TABLE_MODULES:
        import_module(f"cloud_registry.adapters.{name}")
    return metadata


def known_revisions() -> list[str]:
    """The revisions that this code can bring a database to, oldest first."""
    return sorted(path.stem[1:5] for path in (MIGRATIONS / "versions").glob("r[0-9][0-9][0-9][0-9]_*.py"))


def bring_up_to_date(engine: Engine) -> None:
    """Make or migrate what is missing, in one transaction; others who open the database wait for it.

    Raises:
        RegistryError: the database was made by a later version of Slipway.
    """
    with engine.connect() as connection:
        connection.execution_options(reads_only=True)
        if _revision(connection) == known_revisions()[-1]:
            return
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
        _bring_up_to_date(connection)


def _bring_up_to_date(connection: Connection) -> None:
    known, revision = known_revisions(), _revision(connection)
    if revision == known[-1]:
        return
    if revision is not None and revision not in known:
        raise RegistryError(
            f"the catalog is of revision {revision}, and this Slipway knows revisions up to {known[-1]}",
            hint="A later version of Slipway has changed the database. Use that version, or a backup from before.",
        )
    declared = declared_tables()
    if revision is None and not set(inspect(connection).get_table_names()) & set(declared.tables):
        declared.create_all(connection, checkfirst=False)
        _revisions.create(connection)
        connection.execute(insert(_revisions).values(revision=known[-1]))
        return
    _log.info("migrating the catalog from revision %s to %s", revision or "none", known[-1])
    migrate(connection, known[-1])


def migrate(connection: Connection, revision: str) -> None:
    """Run the revisions up to one, inside the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    with _alembic_lock:
        command.upgrade(config, revision)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(_revisions.name):
        return None
    return connection.scalar(select(_revisions.c.revision))
