"""Which version ran on a device at that time: recorded by a server from the hub's twins, asked on the command line."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cloud_registry import wiring
from cloud_registry.config import read_config
from cloud_registry.core.running import PeriodQuery
from cloud_registry.service.models import ModelService
from cloud_registry.service.registration import Registration
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub
from tests.unit.registry.registry_models import IDENTITY, linear_onnx
from tests.wire.registry.conftest import RunningServer, wait_until

pytestmark = pytest.mark.wire


def digest(version: int) -> str:
    return "sha256:" + str(version) * 64


def report(hub: BackgroundHub, version: int, previous: int | None = None) -> None:
    entry: dict[str, Any] = {
        "generation": version, "rollout": f"r-000{version}", "phase": "committed", "version": version,
        "loadedVersion": version, "loadedDigest": digest(version),
    }  # fmt: skip
    if previous is not None:
        entry["previous"] = {"version": previous, "digest": digest(previous)}
    section = json.dumps({"models": {"digits": entry}}).encode()
    agent = IdentityId("dev-01", "slipway")
    hub.call(lambda: hub.server.switchboard.hub.report(agent, section, hub.server.switchboard.now()))


def test_a_server_records_what_runs_and_what_a_device_goes_back_to_stays(
    hub: BackgroundHub,
    models: ModelService,
    home: Path,
    tmp_path: Path,
    slipway: Callable[..., Any],
    serve: Callable[..., RunningServer],
):
    for number in (1, 2):
        models.register(Registration("digits", (linear_onnx(tmp_path / f"v{number}.onnx", number * IDENTITY),)))
    hub.create_module("dev-01", "slipway")
    server = serve("--tick", "0.05", "--fleet-look", "0.05")
    log = wiring.open_running(read_config(home, {}))
    moments = []
    for version, previous in ((1, None), (2, 1)):
        report(hub, version, previous)
        wait_until(lambda: (log.periods(PeriodQuery(limit=1)) or [None])[0] is not None)
        wait_until(lambda version=version: log.periods(PeriodQuery(limit=1))[0].version == version)
        moments.append(datetime.now(UTC).isoformat())
    for version, moment in zip((1, 2), moments, strict=True):
        said = slipway("model", "history", "digits", "--device", "dev-01", "--at", moment, "--json")
        (period,) = json.loads(said.stdout)
        assert (period["version"], period["digest"], period["rollout"]) == (
            version,
            digest(version),
            f"r-000{version}",
        )
    said = slipway("model", "history")
    assert [line.split()[:2] for line in said.stdout.splitlines()[1:]] == [
        ["dev-01/slipway", "digits:2"],
        ["dev-01/slipway", "digits:1"],
    ]
    refused = slipway("model", "delete", "digits:1")
    assert refused.returncode == 5
    assert "dev-01/slipway keeps it to go back to" in refused.stderr
    refused = slipway("model", "delete", "digits:2", "--json")
    assert (refused.returncode, json.loads(refused.stdout)) == (
        5,
        {
            "name": "digits",
            "version": 2,
            "deleted": False,
            "holders": [{"where": "dev-01/slipway", "why": "runs it"}],
        },
    )
    assert server.stop() == 0
