"""Transactions whose failures are told in words: locked, full, not a database, not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from cloud_registry.errors import ConflictError, RegistryError, UsageError


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction, committed at the end or not at all."""
    with database_words(), engine.begin() as connection:
        yield connection


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent view that waits for no writer, however many statements look at it."""
    options: dict[str, Any] = {"reads_only": True}
    if engine.dialect.name == "postgresql":
        options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    with database_words(), engine.connect() as connection:
        yield connection.execution_options(**options)


@contextmanager
def database_words() -> Iterator[None]:
    """Turn what the database driver raises into our errors; a broken constraint stays, for its owner to read."""
    try:
        yield
    except IntegrityError:
        raise
    except (DataError, OverflowError) as err:
        # A number beyond what a column holds, a text with a zero byte: whoever gave it can tell.
        reason = str(err.orig) if isinstance(err, DataError) else "a number is larger than any that it counts to"
        raise UsageError(f"the catalog cannot hold or look for a value that was given: {reason}") from err
    except DBAPIError as err:
        raise _in_words(str(err.orig)) from err


# What psycopg says of a server that is not there, shuts down, or does not let us in.
_CANNOT_CONNECT = (
    "connection failed", "connection to server", "server closed the connection", "terminating connection",
    "connection timeout", "the connection is closed", "consuming input failed", "failed to resolve host",
)  # fmt: skip


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
    if any(words in reason for words in _CANNOT_CONNECT):
        return RegistryError(
            f"the catalog's database cannot be reached ({reason.strip()})",
            hint="Check the host, the user and the password in SLIPWAY_DATABASE, and that the server runs.",
        )
    if "deadlock" in reason or "could not serialize" in reason:
        return ConflictError(
            "others changed the catalog at the same moment", hint="Run the command again: nothing was left half done."
        )
    return RegistryError(f"the database refused: {reason}", hint="Check SLIPWAY_DATABASE, and run it with --debug.")
