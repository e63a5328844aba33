"""Transactions whose failures are told in words: locked, full, not a database, not there."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from cloud_registry.errors import ConflictError, RegistryError


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction, committed at the end or not at all."""
    with database_words(), engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent view that waits for no writer."""
    with database_words(), engine.connect() as connection:
        yield connection.execution_options(reads_only=True)


@contextmanager
def database_words() -> Iterator[None]:
    """Turn what the database driver raises into our errors; a broken constraint stays, for its owner to read."""
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as err:
        raise _in_words(str(err.orig)) from err


def _in_words(reason: str) -> RegistryError:
    if "locked" in reason:
        return ConflictError(
            f"the catalog is being written by another process ({reason})", hint="Run the command again in a moment."
        )
    # A full disk also shows as an I/O error, where SQLite cannot grow the index that its processes share.
    if "full" in reason or "disk I/O error" in reason:
        return RegistryError(
            f"the catalog cannot be written for want of room, or because the disk fails ({reason})",
            hint="Free some space and run the command again: nothing was left half done.",
        )
    if "unable to open" in reason or "not a database" in reason or "readonly" in reason or "read-only" in reason:
        return RegistryError(
            f"the catalog cannot be opened ({reason})", hint="Check --home and SLIPWAY_DATABASE, and who owns the file."
        )
    return RegistryError(f"the database refused: {reason}", hint="Check SLIPWAY_DATABASE, and run it with --debug.")
