"""Manifests of ours on a hub, put there with the vendor's SDK: what its twins come to, and what we say of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from azure.iot.hub import IoTHubConfigurationManager, IoTHubRegistryManager
from azure.iot.hub.models import Configuration, ConfigurationContent, Twin, TwinProperties
from click.testing import CliRunner, Result

from cloud_registry.adapters import azure_hub
from cloud_registry.cli import main
from manifests.deployment import DeploymentManifest, EdgeModule, Route
from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire
KEYS = ("MDEyMzQ1Njc4OWFiY2RlZg==", "ZmVkY2JhOTg3NjU0MzIxMA==")
UP = Route(route="FROM /messages/modules/scorer/* INTO $upstream", priority=3)
Run = Callable[..., Result]


@pytest.fixture
def registry(hub: BackgroundHub) -> IoTHubRegistryManager:
    return IoTHubRegistryManager.from_connection_string(hub.service_connection_string)


@pytest.fixture
def run(hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("IOTHUB_CONNECTION_STRING", hub.service_connection_string)
    monkeypatch.setenv("SLIPWAY_CA_FILE", str(hub.ca_file))
    monkeypatch.setenv("SLIPWAY_HOME", str(tmp_path / "home"))
    return lambda *arguments: CliRunner().invoke(main, ["manifest", *arguments])


def deployment(version: int, *, options_length: int = 0, **settings: Any) -> DeploymentManifest:
    options = {"Env": ["x" * options_length]} if options_length else {}
    return DeploymentManifest(
        edge_agent=EdgeModule(image="example.azurecr.io/agent:1.5"),
        edge_hub=EdgeModule(image="example.azurecr.io/hub:1.5"),
        modules={"scorer": EdgeModule(image=f"example.azurecr.io/scorer:{version}", create_options=options)},
        **settings,
    )


def configured(hub: BackgroundHub, name: str, content: dict[str, Any], priority: int, condition: str) -> None:
    IoTHubConfigurationManager.from_connection_string(hub.service_connection_string).create_configuration(
        Configuration(
            id=name,
            content=ConfigurationContent(modules_content=content["modulesContent"]),
            priority=priority,
            target_condition=condition,
        )
    )


def gateway(registry: IoTHubRegistryManager, name: str, site: str, *, is_edge: bool = True) -> None:
    registry.create_device_with_sas(name, *KEYS, "enabled", iot_edge=is_edge)
    registry.update_twin(name, Twin(tags={"site": site}))


def desired(registry: IoTHubRegistryManager, module: str) -> dict[str, Any]:
    section = registry.get_module_twin("gw-1", module).properties.desired
    return {key: value for key, value in section.items() if not key.startswith("$")}


def test_a_base_and_a_layer_of_ours_come_to_what_the_preview_says(
    hub: BackgroundHub, registry: IoTHubRegistryManager, run: Run, tmp_path: Path
) -> None:
    gateway(registry, "gw-1", "line-3")
    base = deployment(3, options_length=1200, routes={"up": UP}, desired={"scorer": {"models": {"a": {"version": 1}}}})
    layer = deployment(4, routes={"down": UP}, desired={"scorer": {"models": {"b": {"version": 2}}}})
    configured(hub, "base", base.to_wire(), 10, "tags.site = 'line-3'")
    configured(hub, "other-base", deployment(1).to_wire(), 5, "*")
    configured(hub, "layer", layer.to_layer(), 20, "tags.site = 'line-3'")
    configured(hub, "elsewhere", deployment(9).to_layer(), 30, "tags.site = 'line-4'")
    result = run("preview", "--hub", "--device", "gw-1", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["applied"] == ["base", "layer"]
    assert {each["deployment"] for each in told["leftOut"]} == {"other-base", "elsewhere"}
    for module in ("$edgeAgent", "$edgeHub", "scorer"):
        assert told["modulesContent"][module]["properties.desired"] == desired(registry, module), module
    module = desired(registry, "$edgeAgent")["modules"]["scorer"]
    assert module["settings"] == {"image": "example.azurecr.io/scorer:4", "createOptions": ""}
    assert set(desired(registry, "scorer")["models"]) == {"a", "b"}

    # What would be if one more layer were there, and another one in the place of that which is.
    file = tmp_path / "next.json"
    file.write_text(json.dumps({"id": "layer", "priority": 20, "targetCondition": "*", "content": layer.to_layer()
                                | {"modulesContent": deployment(5).to_layer()["modulesContent"]}}))  # fmt: skip
    told = json.loads(run("preview", "--hub", "--device", "gw-1", "--json", str(file)).stdout)
    modules = told["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]
    assert modules["scorer"]["settings"]["image"] == "example.azurecr.io/scorer:5"
    assert desired(registry, "$edgeAgent")["modules"]["scorer"] == module


def test_options_that_became_shorter_leave_no_piece_behind_in_the_twin(
    hub: BackgroundHub, registry: IoTHubRegistryManager
) -> None:
    gateway(registry, "gw-1", "line-3")
    manager = IoTHubConfigurationManager.from_connection_string(hub.service_connection_string)
    long, short = deployment(1, options_length=1200), deployment(2, options_length=30)
    manager.apply_configuration_on_edge_device("gw-1", ConfigurationContent(**_content(long.to_wire())))
    registry.update_module_twin(
        "gw-1",
        "$edgeAgent",
        Twin(properties=TwinProperties(desired=_section(short.to_wire(former_pieces={"scorer": 3}), "$edgeAgent"))),
    )
    settings = desired(registry, "$edgeAgent")["modules"]["scorer"]["settings"]
    assert settings == {"image": "example.azurecr.io/scorer:2", "createOptions": '{"Env":["' + "x" * 30 + '"]}'}


def test_a_patch_of_a_twin_tells_a_running_module_its_model(
    hub: BackgroundHub, registry: IoTHubRegistryManager
) -> None:
    gateway(registry, "gw-1", "line-3")
    manager = IoTHubConfigurationManager.from_connection_string(hub.service_connection_string)
    running = deployment(1, desired={"scorer": {"models": {"a": {"version": 1}}}})
    manager.apply_configuration_on_edge_device("gw-1", ConfigurationContent(**_content(running.to_wire())))
    patch = deployment(1, desired={"scorer": {"models": {"b": {"version": 7}}}}).to_twin_patch("scorer")
    registry.update_module_twin("gw-1", "scorer", Twin.deserialize(patch))
    assert desired(registry, "scorer") == {"models": {"a": {"version": 1}, "b": {"version": 7}}}


def _content(document: dict[str, Any]) -> dict[str, Any]:
    return {"modules_content": document["modulesContent"]}


def _section(document: dict[str, Any], module: str) -> Any:
    return document["modulesContent"][module]["properties.desired"]


def test_targets_of_a_hub_are_read_page_by_page(
    registry: IoTHubRegistryManager, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure_hub, "QUERY_PAGE_ITEMS", 2)
    for number in range(5):
        gateway(registry, f"d{number}", "line-3" if number else "line-4", is_edge=number != 4)
    result = run("targets", "tags.site = 'line-3'", "--hub", "--json")
    assert json.loads(result.stdout) == {
        "condition": "tags.site = 'line-3'",
        "devices": ["d1", "d2", "d3", "d4"],
        "of": 5,
    }
    result = run("targets", "tags.site = 'line-3'", "--hub", "--edge-only", "--json")
    assert (json.loads(result.stdout)["devices"], json.loads(result.stdout)["of"]) == (["d1", "d2", "d3"], 4)


def test_a_device_that_is_not_there_and_a_hub_that_is_not_named_are_said(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = run("preview", "--hub", "--device", "ghost")
    assert (missing.exit_code, "reading the twin of ghost" in missing.stderr) == (6, True)
    monkeypatch.delenv("IOTHUB_CONNECTION_STRING")
    unnamed = run("targets", "*", "--hub")
    assert (unnamed.exit_code, "IOTHUB_CONNECTION_STRING" in unnamed.stderr) == (2, True)
