"""The artifact server as a process of its own, on the hub's address with the hub's certificate."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloud_registry import wiring
from cloud_registry.config import read_config
from cloud_registry.service.models import ModelService
from simulators.iothub.server.background import BackgroundHub
from tests.wire.registry.storage_servers import azure, object_store, s3, servers, storage_place, wire  # noqa: F401

SLIPWAY = [sys.executable, "-c", "from cloud_registry.cli import main; main()"]
STOP_TIMEOUT_S = 20


def wait_until(is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)


@dataclass
class RunningServer:
    process: subprocess.Popen[str]
    url: str
    ca_file: Path | None

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def models(home: Path) -> ModelService:
    return wiring.open_models(read_config(home, {}))


@pytest.fixture
def environment(home: Path, hub: BackgroundHub) -> dict[str, str]:
    """What a person sets who works with this hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLIPWAY_", "IOTHUB_"))}
    return {
        **kept,
        "SLIPWAY_HOME": str(home),
        "IOTHUB_CONNECTION_STRING": hub.service_connection_string,
        "SLIPWAY_CA_FILE": str(hub.ca_file),
        "SLIPWAY_TELEMETRY_URL": hub.telemetry_url,
    }


@pytest.fixture
def slipway(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command line in a process of its own; keyword arguments change its environment."""

    def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*SLIPWAY, *arguments], env={**environment, **changes}, capture_output=True, text=True, timeout=60
        )

    return run


@pytest.fixture
def serve(environment: dict[str, str], hub: BackgroundHub) -> Iterator[Callable[..., RunningServer]]:
    """Starts `slipway serve` on a free port of the hub's address and waits until it says that it serves."""
    started: list[subprocess.Popen[str]] = []
    certificates = hub.endpoints.certificates

    def start(*arguments: str, tls: bool = True) -> RunningServer:
        command = [*SLIPWAY, "serve", "--address", hub.address, "--port", "0", *arguments]
        if tls:
            command += ["--certificate", str(certificates.certificate), "--key", str(certificates.key)]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(r"Serving artifacts on (https?://\S+/artifacts/)\n", line)
        assert match is not None, line
        return RunningServer(process, match[1], hub.ca_file if tls else None)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
