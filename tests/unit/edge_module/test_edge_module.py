"""The module that carries the agent into IoT Edge: its environment, its entry point and its image."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from device_agent.config import Identity
from device_agent.errors import ConfigurationError
from edge_module.main import edge_identity
from manifests.recipe import STATE_FOLDER

ROOT = Path(__file__).parents[3]
DOCKERFILE = ROOT / "edge_module" / "Dockerfile"
ENVIRONMENT = {
    "IOTEDGE_WORKLOADURI": "unix:///var/run/iotedge/workload.sock",
    "IOTEDGE_MODULEGENERATIONID": "637",
    "IOTEDGE_IOTHUBHOSTNAME": "hub.azure-devices.net",
    "IOTEDGE_GATEWAYHOSTNAME": "gateway",
    "IOTEDGE_DEVICEID": "dev-01",
    "IOTEDGE_MODULEID": "slipway",
    "IOTEDGE_APIVERSION": "2020-07-07",
}


def run_module(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_module", *arguments],
        cwd=ROOT, env={"PATH": "/usr/bin:/bin", **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_the_runtime_says_who_the_module_is():
    assert edge_identity(ENVIRONMENT) == Identity("hub.azure-devices.net", "dev-01", "slipway")


def test_outside_a_container_a_connection_string_says_it():
    outside = {
        "EdgeHubConnectionString": "HostName=h;GatewayHostName=g;DeviceId=d;ModuleId=m;SharedAccessKey=a2V5",
        "EdgeModuleCACertificateFile": "/ca.pem",
    }
    assert edge_identity(outside) == Identity("h", "d", "m")


@pytest.mark.parametrize("missing", ENVIRONMENT)
def test_an_environment_that_is_none_is_named(missing):
    with pytest.raises(ConfigurationError, match=missing):
        edge_identity({name: value for name, value in ENVIRONMENT.items() if name != missing})


def test_the_entry_point_explains_itself():
    done = run_module("--help")
    assert (done.returncode, "IoT Edge" in done.stdout) == (0, True)


def test_outside_iot_edge_it_ends_with_one_sentence():
    done = run_module()
    assert done.returncode == 2
    assert done.stderr.startswith("Error: This is no IoT Edge environment")
    assert "Traceback" not in done.stderr


def test_without_settings_it_names_what_it_needs():
    done = run_module(**ENVIRONMENT)
    assert (done.returncode, "needs artifacts_url" in done.stderr) == (2, True)


def instructions(name: str) -> list[str]:
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return re.findall(rf"^{name}\s+(.+)$", text, re.MULTILINE)


def test_the_image_copies_only_what_exists():
    sources = [word for line in instructions("COPY") if not line.startswith("--from") for word in line.split()[:-1]]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_image_runs_the_module_as_nobody_special():
    assert json.loads(instructions("ENTRYPOINT")[0]) == ["python", "-m", "edge_module"]
    assert instructions("USER") == ["slipway"]
    assert instructions("VOLUME") == [STATE_FOLDER]


def test_the_image_holds_what_the_agent_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {*project["dependencies"], *project["optional-dependencies"]["agent"]}
    lines = (ROOT / "edge_module" / "requirements.txt").read_text().splitlines()
    assert {line for line in lines if line and not line.startswith("#")} == declared
