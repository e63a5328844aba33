"""The unmodified azure-iot-hub: bulk, configurations, jobs and digital twins against the hub over real sockets."""

from collections.abc import Callable
from typing import Any

import pytest
from azure.iot.hub import IoTHubConfigurationManager, IoTHubRegistryManager
from azure.iot.hub.models import (
    Configuration,
    ConfigurationContent,
    ConfigurationMetrics,
    ConfigurationQueriesTestInput,
    ExportImportDevice,
    QuerySpecification,
    Twin,
)
from msrest.exceptions import HttpOperationError

from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire
KEYS = ("MDEyMzQ1Njc4OWFiY2RlZg==", "ZmVkY2JhOTg3NjU0MzIxMA==")
PRINTS = ("A" * 40, "B" * 40)


@pytest.fixture
def registry(hub: BackgroundHub) -> IoTHubRegistryManager:
    return IoTHubRegistryManager.from_connection_string(hub.service_connection_string)


@pytest.fixture
def configurations(hub: BackgroundHub) -> IoTHubConfigurationManager:
    return IoTHubConfigurationManager.from_connection_string(hub.service_connection_string)


def refusal(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(HttpOperationError) as refused:
        call()
    return refused.value.response.status_code, refused.value.response.headers["iothub-errorcode"]


def test_every_sort_of_device_and_module_is_made_changed_and_removed(registry: IoTHubRegistryManager) -> None:
    made = [
        registry.create_device_with_sas("sas", *KEYS, "enabled", iot_edge=True),
        registry.create_device_with_x509("x509", *PRINTS, "enabled"),
        registry.create_device_with_certificate_authority("ca", "enabled"),
    ]
    assert [device.authentication.type for device in made] == ["sas", "selfSigned", "certificateAuthority"]
    updated = [
        registry.update_device_with_sas("sas", made[0].etag, *KEYS, "disabled"),
        registry.update_device_with_x509("x509", made[1].etag, *reversed(PRINTS), "disabled"),
        registry.update_device_with_certificate_authority("ca", made[2].etag, "disabled"),
    ]
    assert [device.status for device in updated] == ["disabled"] * 3
    assert updated[1].authentication.x509_thumbprint.primary_thumbprint == PRINTS[1]
    modules = [
        registry.create_module_with_sas("x509", "m-sas", "me", *KEYS),
        registry.create_module_with_x509("x509", "m-x509", "me", *PRINTS),
        registry.create_module_with_certificate_authority("x509", "m-ca", "me"),
    ]
    assert [module.module_id for module in registry.get_modules("x509")] == ["m-sas", "m-x509", "m-ca"]
    assert {module.module_id for module in registry.get_modules("sas")} == {"$edgeAgent", "$edgeHub"}
    changed = [
        registry.update_module_with_sas("x509", "m-sas", "you", modules[0].etag, *KEYS),
        registry.update_module_with_x509("x509", "m-x509", "you", modules[1].etag, *PRINTS),
        registry.update_module_with_certificate_authority("x509", "m-ca", "you", modules[2].etag),
    ]
    assert [module.managed_by for module in changed] == ["you"] * 3
    assert refusal(lambda: registry.delete_module("x509", "m-sas", modules[0].etag)) == (412, "PreconditionFailed")
    registry.delete_module("x509", "m-sas", changed[0].etag)
    registry.delete_device("sas")
    assert [device.device_id for device in registry.get_devices()] == ["x509", "ca"]
    assert [device.device_id for device in registry.get_devices(1)] == ["x509"]
    statistics = registry.get_device_registry_statistics()
    assert (statistics.total_device_count, statistics.disabled_device_count) == (2, 2)


def test_a_bulk_request_does_what_it_can_and_says_what_it_cannot(registry: IoTHubRegistryManager) -> None:
    devices = [ExportImportDevice(id=f"d{number}", import_mode="create", status="enabled") for number in range(3)]
    result = registry.bulk_create_or_update_devices(devices)
    assert (result.is_successful, result.errors) == (True, [])
    result = registry.bulk_create_or_update_devices(
        [devices[0], ExportImportDevice(id="d1", import_mode="updateTwin", tags={"a": 1}), devices[2]]
    )
    assert result.is_successful is False
    assert [(error.device_id, error.error_code, error.operation) for error in result.errors] == [
        ("d0", "DeviceAlreadyExists", "create"),
        ("d2", "DeviceAlreadyExists", "create"),
    ]
    assert registry.get_twin("d1").tags == {"a": 1}
    assert len(registry.get_devices()) == 3


def test_a_configuration_lives_and_reaches_its_devices(
    registry: IoTHubRegistryManager, configurations: IoTHubConfigurationManager
) -> None:
    for number in range(2):
        registry.create_device_with_sas(f"d{number}", *KEYS, "enabled")
        registry.update_twin(f"d{number}", Twin(tags={"n": number}))
    made = configurations.create_configuration(
        Configuration(
            id="c1",
            content=ConfigurationContent(device_content={"properties.desired.level": "info"}),
            target_condition="tags.n = 1",
            priority=3,
            labels={"by": "test"},
            metrics=ConfigurationMetrics(
                queries={"set": "SELECT deviceId FROM devices WHERE properties.desired.level = 'info'"}
            ),
        )
    )
    assert (made.id, made.priority, made.labels, made.etag) == ("c1", 3, {"by": "test"}, "MQ==")
    twin = registry.get_twin("d1")
    assert twin.properties.desired["level"] == "info"
    assert twin.additional_properties["configurations"] == {"c1": {"status": "Applied"}}
    read = configurations.get_configuration("c1")
    assert read.system_metrics.results == {"targetedCount": 1, "appliedCount": 1}
    assert read.metrics.results == {"set": 1}
    assert refusal(lambda: configurations.create_configuration(read)) == (409, "ConfigurationAlreadyExists")
    read.target_condition = "*"
    updated = configurations.update_configuration(read, read.etag)
    assert updated.system_metrics.results == {"targetedCount": 2, "appliedCount": 2}
    assert refusal(lambda: configurations.update_configuration(read, read.etag)) == (412, "PreconditionFailed")
    assert [item.id for item in configurations.get_configurations(5)] == ["c1"]
    assert refusal(lambda: configurations.delete_configuration("c1", read.etag)) == (412, "PreconditionFailed")
    configurations.delete_configuration("c1")
    assert configurations.get_configurations() == []
    assert refusal(lambda: configurations.get_configuration("c1")) == (404, "ConfigurationNotFound")
    assert "level" not in registry.get_twin("d0").properties.desired


def test_queries_of_a_configuration_are_tested_before(configurations: IoTHubConfigurationManager) -> None:
    verdict = configurations.test_configuration_queries(
        ConfigurationQueriesTestInput(
            target_condition="tags.a = ",
            custom_metric_queries={"good": "SELECT * FROM devices", "bad": "SELECT * FROM nowhere"},
        )
    )
    assert verdict.target_condition_error == "the condition ends too early"
    assert list(verdict.custom_metric_query_errors) == ["bad"]


def test_a_manifest_reaches_one_edge_device(
    registry: IoTHubRegistryManager, configurations: IoTHubConfigurationManager
) -> None:
    registry.create_device_with_sas("edge", *KEYS, "enabled", iot_edge=True)
    agent = {"schemaVersion": "1.1", "runtime": {"type": "docker"}, "modules": {"scorer": {"version": "1"}}}
    content = ConfigurationContent(
        modules_content={
            "$edgeAgent": {"properties.desired": agent},
            "$edgeHub": {"properties.desired": {"routes": {}}},
            "scorer": {"properties.desired": {"model": 7}},
        }
    )
    configurations.apply_configuration_on_edge_device("edge", content)
    assert registry.get_module("edge", "scorer").managed_by == "IotEdge"
    assert registry.get_module_twin("edge", "scorer").properties.desired["model"] == 7
    desired = registry.get_module_twin("edge", "$edgeAgent").properties.desired
    assert {key: desired[key] for key in agent} == agent
    found = registry.query_iot_hub(
        QuerySpecification(query="SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent'")
    )
    assert [twin.device_id for twin in found.items] == ["edge"]
