"""A version that some device needs is not deleted: asked of a real hub, through the command line."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloud_registry.ports import ModelQuery
from cloud_registry.service.models import ModelService
from cloud_registry.service.registration import Registration
from manifests.twin import ReportedAgent, ReportedSection
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub
from tests.unit.registry.registry_models import IDENTITY, linear_onnx
from tests.wire.registry.conftest import RunningServer, wait_until

pytestmark = pytest.mark.wire

Slipway = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def two(models: ModelService, tmp_path: Path) -> None:
    for number in (1, 2):
        models.register(Registration("digits", (linear_onnx(tmp_path / f"v{number}.onnx", number * IDENTITY),)))


def ask(hub: BackgroundHub, device: str, models: dict[str, Any]) -> None:
    hub.create_module(device, "slipway")

    def patch() -> None:
        switchboard = hub.server.switchboard
        desired = {"properties": {"desired": {"models": models}}}
        switchboard.hub.patch_twin(IdentityId(device, "slipway"), desired, None, switchboard.now())

    hub.call(patch)


def versions(models: ModelService) -> list[str]:
    return [str(manifest.reference) for manifest in models.search(ModelQuery())]


def test_a_version_that_devices_are_asked_to_run_stays(
    hub: BackgroundHub, two: None, models: ModelService, slipway: Slipway
):
    ask(hub, "dev-01", {"digits": {"version": 1}})
    ask(hub, "dev-02", {"digits": {"version": 1}, "faces": {"version": 2}})
    refused = slipway("model", "delete", "digits:1")
    assert (refused.returncode, refused.stdout) == (5, "")
    assert refused.stderr.splitlines()[:3] == [
        "Error: digits:1 is in use and was not deleted:",
        "  dev-01/slipway is asked to run it",
        "  dev-02/slipway is asked to run it",
    ]
    assert versions(models) == ["digits:1", "digits:2"]
    deleted = slipway("model", "delete", "digits:2")
    assert (deleted.returncode, deleted.stdout) == (0, "Deleted digits:2\n")
    assert versions(models) == ["digits:1"]


def test_with_no_hub_to_be_reached_nothing_is_deleted(
    hub: BackgroundHub, two: None, models: ModelService, slipway: Slipway
):
    hub.go_away()
    refused = slipway("model", "delete", "digits:1")
    assert (refused.returncode, refused.stdout) == (4, "")
    assert versions(models) == ["digits:1", "digits:2"]
    hub.come_back()


def test_with_a_wrong_key_nothing_is_deleted(hub: BackgroundHub, two: None, models: ModelService, slipway: Slipway):
    wrong = hub.service_connection_string.partition("SharedAccessKey=")[0] + "SharedAccessKey=d3Jvbmc="
    refused = slipway("model", "delete", "digits:1", IOTHUB_CONNECTION_STRING=wrong)
    assert (refused.returncode, refused.stdout) == (7, "")
    assert versions(models) == ["digits:1", "digits:2"]


def test_a_server_drives_rollouts_and_what_they_carry_stays(
    hub: BackgroundHub, two: None, slipway: Slipway, serve: Callable[..., RunningServer]
):
    hub.create_module("dev-01", "slipway")
    agent = IdentityId("dev-01", "slipway")
    section = ReportedSection(agent=ReportedAgent(version="1", boot="b1", platform="linux", formats=("onnx",)))
    hub.call(lambda: hub.server.switchboard.hub.report(agent, section.to_json(), hub.server.switchboard.now()))
    server = serve("--tick", "0.1")
    started = slipway("rollout", "start", "digits:2", "--device", "dev-01", "--detach")
    assert started.returncode == 0, started.stderr

    def desired() -> Any:
        twin = hub.call(lambda: hub.server.switchboard.hub.twin_document(agent))
        return twin["properties"]["desired"].get("models", {}).get("digits", {}).get("version")

    # Nobody but the server's controller writes this.
    wait_until(lambda: desired() == 2)
    refused = slipway("model", "delete", "digits:2")
    assert refused.returncode == 5
    assert refused.stderr.splitlines()[1:3] == [
        "  dev-01/slipway is asked to run it",
        "  r-0001 carries it to devices",
    ]
    assert slipway("model", "delete", "digits:2", "--offline").returncode == 5
    assert server.stop() == 0
