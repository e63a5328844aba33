"""Real object stores for tests: S3 by moto's server, Azure Blob by Azurite; and a wire between that counts and stalls.

A store is started once for a whole test run, whichever worker asks first, and ends with the run. Each test has a bucket
of its own. Use the fixtures `s3`, `azure` and `object_store` (both), or `storage_place` (a folder as well).
"""

import base64
import fcntl
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

START_TIMEOUT_S = 60.0
# The account that Azurite is started with.
AZURE_ACCOUNT = "slipway"
AZURE_KEY = base64.b64encode(b"a key for tests").decode()
REGION = "us-east-1"


# --- servers -----------------------------------------------------------------


ADDRESS = "127.0.0.1"


def moto_command(port: int) -> list[str]:
    return [sys.executable, "-m", "moto.server", "-H", ADDRESS, "-p", str(port)]


def azurite_command(port: int) -> list[str]:
    program = shutil.which("azurite-blob")
    if program is None:
        message = "azurite-blob is not installed (npm: azurite)"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    options = ["--blobHost", ADDRESS, "--blobPort", str(port), "--inMemoryPersistence", "--skipApiVersionCheck"]
    return [program, *options, "--silent", "--disableTelemetry"]


def free_port() -> int:
    with socket.create_server((ADDRESS, 0)) as listener:
        return int(listener.getsockname()[1])


COMMANDS = {"moto": moto_command, "azurite": azurite_command}


def running_server(kind: str, shared: Path) -> tuple[str, int]:
    """Address and port of the run's server of that kind; starts it where no worker has yet."""
    record = shared / f"{kind}.json"
    with (shared / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if record.exists():
            address, port = json.loads(record.read_text())
            return address, port
        port = free_port()
        command = COMMANDS[kind](port)
        run_pid = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
        subprocess.Popen(
            [sys.executable, str(Path(__file__)), str(run_pid), *command],
            stdout=subprocess.DEVNULL,
            stderr=(shared / f"{kind}.log").open("w"),
            env={**os.environ, "AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}"},
            start_new_session=True,
        )
        wait_until_it_listens(ADDRESS, port)
        record.write_text(json.dumps([ADDRESS, port]))
        return ADDRESS, port


def wait_until_it_listens(address: str, port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        with suppress(OSError), socket.create_connection((address, port), timeout=1):
            return
        assert time.monotonic() < deadline, f"nothing listens on {address}:{port}"
        time.sleep(0.05)


def run_as_long_as(pid: int, command: list[str]) -> None:
    """Run a server until it ends or the process `pid` does."""
    with suppress(ProcessLookupError):
        run = os.pidfd_open(pid)
        server = subprocess.Popen(command)
        select.select([run, os.pidfd_open(server.pid)], [], [])
        server.kill()
        server.wait()


# --- a wire that counts and stalls -------------------------------------------


@dataclass
class Wire:
    """A TCP proxy that counts what clients send and, once told, lets nothing more than so many bytes through."""

    target: tuple[str, int]
    sent_bytes: int = 0
    stall_after_bytes: int | None = None
    is_stalled: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    def __post_init__(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def place(self) -> tuple[str, int]:
        address, port = self._listener.getsockname()
        return str(address), int(port)

    def release(self) -> None:
        """Let everything through again."""
        self.stall_after_bytes = None
        self._released.set()

    def close(self) -> None:
        self.release()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.target)
                threading.Thread(target=self._carry, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._carry, args=(server, client, False), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, is_upward: bool) -> None:
        with suppress(OSError):
            while data := source.recv(64 * 1024):
                if is_upward:
                    self.sent_bytes += len(data)
                    if self.stall_after_bytes is not None and self.sent_bytes > self.stall_after_bytes:
                        self.is_stalled.set()
                        self._released.wait(START_TIMEOUT_S)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


# --- places ------------------------------------------------------------------


@dataclass(frozen=True)
class StoragePlace:
    """Where artifacts may be kept: a URL, and the environment variables under which it opens."""

    kind: str
    url: str
    environment: dict[str, str] = field(default_factory=dict)
    server: tuple[str, int] | None = None

    def through(self, wire: Wire) -> "StoragePlace":
        """The same place, reached by another way."""
        assert self.server is not None
        here, there = (f"http://{address}:{port}" for address, port in (self.server, wire.place))
        return StoragePlace(
            self.kind,
            self.url,
            {name: value.replace(here, there) for name, value in self.environment.items()},
            self.server,
        )


def s3_place(server: tuple[str, int]) -> StoragePlace:
    environment = {
        "AWS_ENDPOINT_URL": f"http://{server[0]}:{server[1]}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        # moto answers some wrong requests as if it were ill; asking it again is in vain.
        "AWS_MAX_ATTEMPTS": "1",
    }
    bucket = f"b{uuid.uuid4().hex}"
    with environment_of(environment):
        import boto3

        boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"]).create_bucket(Bucket=bucket)
    return StoragePlace("s3", f"s3://{bucket}/models", environment, server)


def azure_place(server: tuple[str, int], key: str = AZURE_KEY) -> StoragePlace:
    from azure.storage.blob import BlobServiceClient

    def connection_string(account_key: str) -> str:
        endpoint = f"http://{server[0]}:{server[1]}/{AZURE_ACCOUNT}"
        return (
            f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={account_key};"
            f"BlobEndpoint={endpoint};"
        )

    container = f"c{uuid.uuid4().hex}"
    with closing(BlobServiceClient.from_connection_string(connection_string(AZURE_KEY))) as service:
        service.create_container(container)
    environment = {"AZURE_STORAGE_CONNECTION_STRING": connection_string(key)}
    return StoragePlace("azure", f"az://{container}/models", environment, server)


@contextmanager
def environment_of(variables: dict[str, str]) -> Iterator[None]:
    """Those environment variables, and file systems that were opened under no others."""
    import fsspec

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AZURE_STORAGE_CONNECTION_STRING"):
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        for protocol in ("s3", "az"):
            fsspec.get_filesystem_class(protocol).clear_instance_cache()
        yield


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, int]]:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return lambda kind: running_server(kind, shared)


@pytest.fixture
def s3(servers: Callable[[str], tuple[str, int]]) -> Iterator[StoragePlace]:
    place = s3_place(servers("moto"))
    with environment_of(place.environment):
        yield place


@pytest.fixture
def azure(servers: Callable[[str], tuple[str, int]]) -> Iterator[StoragePlace]:
    place = azure_place(servers("azurite"))
    with environment_of(place.environment):
        yield place


@pytest.fixture(params=["s3", "azure"])
def object_store(request: pytest.FixtureRequest) -> StoragePlace:
    place: StoragePlace = request.getfixturevalue(request.param)
    return place


@pytest.fixture(params=["folder", "s3", "azure"])
def storage_place(request: pytest.FixtureRequest, tmp_path: Path) -> StoragePlace:
    if request.param == "folder":
        return StoragePlace("folder", f"file://{tmp_path / 'artifacts'}")
    place: StoragePlace = request.getfixturevalue(request.param)
    return place


@pytest.fixture
def wire(object_store: StoragePlace) -> Iterator[Wire]:
    assert object_store.server is not None
    between = Wire(object_store.server)
    yield between
    between.close()


if __name__ == "__main__":
    run_as_long_as(int(sys.argv[1]), sys.argv[2:])
