"""One database for the catalog and the event log: SQLite by default, PostgreSQL by URL."""

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, MetaData, create_engine, event
from sqlalchemy.engine import make_url

# How long a writer waits for another process's transaction before it gives up.
BUSY_TIMEOUT_S = 15.0

# Every table of the registry; each adapter declares its own on it.
metadata = MetaData()


def open_database(url: str) -> Engine:
    """Open the database and create what is missing. The caller has imported the adapters whose tables it needs."""
    location = make_url(url)
    if location.get_backend_name() != "sqlite":
        engine = create_engine(location)
    else:
        if location.database and location.database != ":memory:":
            Path(location.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(location, connect_args={"timeout": BUSY_TIMEOUT_S})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    metadata.create_all(engine)
    return engine


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy then leaves BEGIN to _begin_immediate, so that a transaction takes its write lock at once: two writers
    # queue up instead of failing half-way when the second one upgrades its lock.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_immediate(connection: Any) -> None:
    # A reader takes no lock in WAL mode, so a download never waits for a registration.
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
