"""One database for the catalog and the event log: SQLite by default, PostgreSQL by URL."""

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from cloud_registry.adapters.schema import bring_up_to_date, metadata
from cloud_registry.errors import UsageError

__all__ = ["BUSY_TIMEOUT_S", "metadata", "open_database"]

# How long a writer waits for another process's transaction before it gives up.
BUSY_TIMEOUT_S = 15.0
# A server that does not answer is told of; a person waits no longer than this.
CONNECT_TIMEOUT_S = 10


def open_database(url: str) -> Engine:
    """Open the database, make its tables or bring them up to date.

    Raises:
        UsageError: the URL is none, or of a database that the catalog cannot be kept in.
    """
    location = _location(url)
    engine = _sqlite(location) if location.get_backend_name() == "sqlite" else _postgresql(location)
    bring_up_to_date(engine)
    return engine


def _location(url: str) -> URL:
    hint = "Set SLIPWAY_DATABASE to sqlite:////path/catalog.db or postgresql://user@host/database"
    try:
        # Spelled as libpq's users know it; the driver is ours to choose.
        location = make_url(url.replace("postgres://", "postgresql://", 1))
    except ArgumentError as err:
        # Not repeated in words: it may hold a password.
        raise UsageError("the URL of the database cannot be read", hint=hint) from err
    if location.drivername == "postgresql":
        location = location.set(drivername="postgresql+psycopg")
    if location.get_backend_name() not in ("sqlite", "postgresql"):
        raise UsageError(f"the catalog cannot be kept in {location.get_backend_name()}", hint=hint)
    return location


def _sqlite(location: URL) -> Engine:
    if location.database and location.database != ":memory:":
        Path(location.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(location, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def _postgresql(location: URL) -> Engine:
    try:
        return create_engine(location, pool_pre_ping=True, connect_args={"connect_timeout": CONNECT_TIMEOUT_S})
    except (ModuleNotFoundError, NoSuchModuleError) as err:
        raise UsageError(
            f"the driver {location.get_driver_name()} of the database is not installed",
            hint="Install it: pip install 'slipway[cloud,postgresql]'.",
        ) from err


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy then leaves BEGIN to _begin_immediate, so that a transaction takes its write lock at once: two writers
    # queue up instead of failing half-way when the second one upgrades its lock.
    connection.isolation_level = None
    cursor = connection.cursor()
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _use_wal(cursor: Any) -> None:
    # SQLite's own patience does not cover this switch: whoever opens a new database while another writes the first of
    # it would be told "locked" at once.
    give_up_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as err:
            if err.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > give_up_s:
                raise
        time.sleep(0.01)


def _begin_immediate(connection: Any) -> None:
    # A reader takes no lock in WAL mode, so a download never waits for a registration.
    reads_only = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if reads_only else "BEGIN IMMEDIATE")
