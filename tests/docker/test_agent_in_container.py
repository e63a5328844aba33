"""One container with both: an agent as IoT Edge module at the simulated hub, and the packed model's endpoint."""

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest

from simulators.iothub.server.background import BackgroundHub
from tests.docker.conftest import Workshop
from tests.tiny_models import BETTER, GOOD, TinyModel
from tests.unit.edge_module.model_folders import ANSWERS, ROWS
from tests.wire.agent.artifact_server import ArtifactServer
from tests.wire.agent.conftest import Device, until
from tests.wire.conftest import start_hub

STATE = "/var/lib/slipway"


@pytest.fixture(scope="module")
def agent_image(workshop: Workshop) -> str:
    """An image as its recipe was generated, the agent's packages included; base and image are the engine's."""
    said = workshop.slipway("model", "register", "beside", "mix.onnx", "--sample", "sample.npz")
    assert said.code == 0, said.err
    built = workshop.slipway(
        *("image", "build", "beside:1", "--name", "slipway-test-beside:1", "--platform", "linux/amd64"),
        *("--wheelhouse", str(workshop.wheelhouse("linux/amd64")), "--index"),
        *("--base", f"engine:{workshop.base('linux/amd64')}", "--output", "engine"),
    )
    assert built.code == 0, built.err
    return "slipway-test-beside:1"


class ContainedDevice(Device):
    """A device whose agent runs in a container."""

    container: Any = None

    def must_run(self) -> None:
        self.container.reload()
        assert self.container.status == "running", self.container.logs().decode()[-4000:]
        self.log.write_bytes(self.container.logs())


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[BackgroundHub]:
    running = start_hub(tmp_path / "hub")
    yield running
    running.stop()


@pytest.fixture
def device(agent_image: str, engine: Any, hub: BackgroundHub, tmp_path: Path) -> Iterator[ContainedDevice]:
    artifacts = ArtifactServer(hub.address)
    made = ContainedDevice(hub, artifacts, tmp_path)
    given = tmp_path / "given"
    given.mkdir()
    for file in (hub.ca_file, made.source):
        copyfile(file, given / Path(file).name).chmod(0o644)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        made.port = free.getsockname()[1]
    made.container = engine.containers.run(
        agent_image,
        detach=True,
        read_only=True,
        tmpfs={"/tmp": ""},
        cap_drop=["ALL"],
        # Where the hub is: each has a loopback address of its own.
        network_mode="host",
        volumes={str(given): {"bind": "/given", "mode": "ro"}},
        environment={
            "EdgeHubConnectionString": f"{made.connection_string};GatewayHostName={hub.host_name}",
            "EdgeModuleCACertificateFile": f"/given/{Path(hub.ca_file).name}",
            "SLIPWAY_AGENT_ARTIFACTS_URL": artifacts.url,
            "SLIPWAY_AGENT_SOURCE": f"replay:/given/{made.source.name}",
            "SLIPWAY_AGENT_INTERVAL": "0.02",
            "SLIPWAY_PORT": str(made.port),
        },
    )
    yield made
    made.container.remove(force=True, v=True)
    artifacts.stop()


def scored(port: int) -> tuple[str, list[list[float]]]:
    """Which model the endpoint has, and what it answers to the golden rows."""
    body = json.dumps({"inputs": {"x": ROWS.tolist()}}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/score", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        told = json.loads(response.read())
    return told["model"], [answer["outputs"]["y"][0] for answer in told["answers"]]


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.mark.timeout(180)
def test_a_module_takes_its_update_proves_it_and_serves_the_packed_model_beside(device: ContainedDevice) -> None:
    first = device.publish(TinyModel.of(GOOD), 1)
    device.desire(first)
    device.until_reported("committed", 1)
    until(lambda: is_ready(device.port), "the endpoint is ready")
    assert scored(device.port) == ("beside:1", ANSWERS.tolist())
    second = device.publish(TinyModel.of(BETTER), 2)
    device.desire(second)
    report = device.until_reported("committed", 2)
    assert (report.loaded_version, report.loaded_digest, report.previous.version) == (2, second.digest, 1)
    assert (report.trial.disagreement, report.trial.errors) == (0.0, 0)
    served = device.until_served(2)
    assert (served.device, served.module, served.generation) == ("dev-01", "slipway", 2)
    assert scored(device.port) == ("beside:1", ANSWERS.tolist())
    assert device.container.exec_run(["python3", "-m", "edge_module.health"]).exit_code == 0
    assert device.container.exec_run(["id", "-u"]).output == b"10001\n"
    began_s = time.monotonic()
    device.container.stop(timeout=30)
    device.container.reload()
    assert device.container.attrs["State"]["ExitCode"] == 0, device.container.logs().decode()[-2000:]
    assert time.monotonic() - began_s < 25
    assert device.hub.connected_clients() == []
    assert STATE in {mount["Destination"] for mount in device.container.attrs["Mounts"]}
