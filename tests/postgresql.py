"""A PostgreSQL server of the tests' own: a private cluster on a unix socket, run as a user without rights."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_TIMEOUT_S = 30.0
USER = "slipway"


@dataclass
class PostgresqlServer:
    folder: Path
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@/postgres?host={self.folder}"

    def execute(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)

    def empty_database(self) -> str:
        """The URL of a place without tables: a schema of its own, which is made faster than a database."""
        name = f"place_{next(self._numbers)}"
        self.execute(f"CREATE SCHEMA {name}")
        return f"{self.url}&options=-csearch_path%3D{name}"


def binaries() -> Path | None:
    """The folder of initdb and postgres: Debian keeps them out of the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "postgres").exists()), None)


@contextmanager
def running_server(folder_of_binaries: Path, *, is_synced: bool = False) -> Iterator[PostgresqlServer]:
    """Unless it is asked for, nothing is synced to the disk: what a power cut leaves is PostgreSQL's own matter."""
    user = _user()
    # A socket's path is short.
    folder = Path(tempfile.mkdtemp(prefix="slipway-pg-"))
    process = None
    try:
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
        rights = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user is not None else {}
        data = folder / "data"
        subprocess.run(
            [
                folder_of_binaries / "initdb", "-D", data, "-U", USER, "--auth=trust", "--no-sync", "--locale=C",
                "--encoding=UTF8", "--no-instructions",
            ],
            check=True, capture_output=True, timeout=120, cwd=folder, **rights,
        )  # fmt: skip
        server = PostgresqlServer(folder)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [folder_of_binaries / "postgres", "-D", data, "-k", folder, "-h", "", *([] if is_synced else ["-F"])],
                stdout=log, stderr=log, cwd=folder, **rights,
            )  # fmt: skip
        _wait_for(server, process)
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)
            process.wait(START_TIMEOUT_S)
        shutil.rmtree(folder, ignore_errors=True)


def _user() -> pwd.struct_passwd | None:
    """Whom to run the server as; None where we are nobody special ourselves. It refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


def _wait_for(server: PostgresqlServer, process: "subprocess.Popen[bytes]") -> None:
    import psycopg

    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            server.execute("SELECT 1")
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((server.folder / "log").read_text(errors="replace")) from None
            time.sleep(0.05)
        else:
            return


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """A server for the whole run of a worker; skipped where there is none, which CI does not accept."""
    folder = binaries()
    if folder is None:
        message = "PostgreSQL is not installed (Debian: postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    with running_server(folder) as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that the catalog is kept in."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.db'}"
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server.empty_database()
