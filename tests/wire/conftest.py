"""A hub for each test: in this process, on a loopback address that nobody else uses."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulators.iothub.errors import HubStartError
from simulators.iothub.server.background import BackgroundHub

START_ATTEMPTS = 20


def start_hub(directory: Path) -> BackgroundHub:
    """A hub on a free address of 127.0.0.0/8, as a hub of another test run may have taken any one."""
    for attempt in range(START_ATTEMPTS):
        address = f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(1, 250)}"
        try:
            return BackgroundHub(directory, address)
        except HubStartError:
            if attempt == START_ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable: the loop returns or raises")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundHub]:
    """A running hub, trusted by `requests` (and so by azure-iot-hub).

    For azure-iot-device, pass ``server_verification_cert=hub.ca_file.read_text()``.
    """
    running = start_hub(tmp_path / "hub")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(running.ca_file))
    monkeypatch.setenv("SSL_CERT_FILE", str(running.ca_file))
    yield running
    running.stop()
