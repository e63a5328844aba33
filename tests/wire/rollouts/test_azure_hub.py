"""The hub adapter on the unmodified azure-iot-hub, over real sockets."""

import os
import socket
import time

import pytest
from scripted_devices import Stage, until

from cloud_registry.adapters import azure_hub
from cloud_registry.adapters.azure_hub import AzureHub
from cloud_registry.config import read_config
from cloud_registry.core.gate import GateTerms
from cloud_registry.core.rollout.documents import RolloutTerms
from cloud_registry.errors import ConflictError, HubError, HubUnreachableError, NotFoundError, TrustError
from cloud_registry.service.rollouts import RolloutRequest
from cloud_registry.wiring import open_rollouts
from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire

SOAKING = RolloutTerms(gate=GateTerms(soak_s=1.0))


@pytest.fixture
def azure(hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch) -> AzureHub:
    # The adapter trusts the CA file it is given, whatever the environment says.
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    return AzureHub(hub.service_connection_string, hub.ca_file)


def test_devices_and_twins_come_in_pages_and_none_is_missing(hub, azure, monkeypatch):
    monkeypatch.setattr(azure_hub, "QUERY_PAGE_ITEMS", 2)
    for number in range(7):
        hub.create_device(f"d{number}", {"site": "north" if number % 2 else "south"})
        hub.create_module(f"d{number}", "slipway")
        hub.create_module(f"d{number}", "other")
    assert sorted(azure.device_ids("*")) == [f"d{number}" for number in range(7)]
    assert sorted(azure.device_ids("tags.site = 'north'")) == ["d1", "d3", "d5"]
    assert sorted(twin.device_id for twin in azure.module_twins("slipway")) == [f"d{number}" for number in range(7)]
    assert azure.module_twins("nobody") == []


def test_a_patch_merges_and_null_removes_at_any_depth(hub, azure):
    hub.create_module("d1", "slipway")
    azure.patch_desired("d1", "slipway", {"models": {"digits": {"generation": 1, "golden": None}, "faces": {"x": 1.5}}})
    azure.patch_desired("d1", "slipway", {"models": {"digits": None}})
    twin = azure.module_twin("d1", "slipway")
    assert twin.desired["models"] == {"faces": {"x": 1.5}}
    assert (twin.device_id, twin.module_id, twin.is_connected, twin.reported.get("models")) == (
        "d1",
        "slipway",
        False,
        None,
    )


def test_a_patch_on_a_twin_that_changed_meanwhile_is_refused(hub, azure):
    hub.create_module("d1", "slipway")
    read = azure.module_twin("d1", "slipway")
    azure.patch_desired("d1", "slipway", {"models": {"digits": {"generation": 1}}}, read.etag)
    with pytest.raises(ConflictError):
        azure.patch_desired("d1", "slipway", {"models": {"digits": {"generation": 2}}}, read.etag)
    assert azure.module_twin("d1", "slipway").desired["models"] == {"digits": {"generation": 1}}


def test_what_is_not_there_is_not_found(hub, azure):
    hub.create_device("d1")
    for device, module in (("d9", "slipway"), ("d1", "slipway")):
        with pytest.raises(NotFoundError, match=f"{device}/{module}"):
            azure.module_twin(device, module)
        with pytest.raises(NotFoundError):
            azure.patch_desired(device, module, {"models": {}})


def test_a_method_on_a_device_that_is_offline_is_the_hubs_refusal(hub, azure):
    hub.create_module("d1", "slipway")
    with pytest.raises(HubError, match="DeviceNotOnline"):
        azure.invoke_method("d1", "slipway", "ping", {"a": 1}, 5)


def test_a_hub_that_is_down_or_never_answers_is_told_at_once(hub, azure, monkeypatch):
    azure.device_ids("*")
    hub.go_away()
    began = time.monotonic()
    with pytest.raises(HubUnreachableError, match="cannot be reached"):
        azure.device_ids("*")
    assert time.monotonic() - began < 3
    hub.come_back()
    # The same adapter goes on when the hub is back: a connection it had kept is dead by now.
    assert azure.device_ids("*") == []
    monkeypatch.setattr(azure_hub, "CONNECT_TIMEOUT_S", 0.5)
    monkeypatch.setattr(azure_hub, "READ_TIMEOUT_S", 0.5)
    with socket.create_server((hub.address, 0)) as deaf:
        text = f"HostName={hub.address}:{deaf.getsockname()[1]};SharedAccessKeyName=service;SharedAccessKey=QUFB"
        with pytest.raises(HubUnreachableError, match="did not answer in time"):
            AzureHub(text).device_ids("*")


def test_a_policy_that_may_not_write_is_a_matter_of_trust(hub, azure):
    hub.create_module("d1", "slipway")
    text = hub.service_connection_string.replace("SharedAccessKey=", "SharedAccessKey=QUFB")
    with pytest.raises(TrustError, match="401"):
        AzureHub(text, hub.ca_file).module_twin("d1", "slipway")


def test_nothing_is_put_into_the_environment(hub, azure):
    before = dict(os.environ)
    azure.device_ids("*")
    assert dict(os.environ) == before


def test_tick_all_survives_an_outage_of_the_hub_and_goes_on(stage: Stage, caplog):
    environment = {key: value for key, value in stage.environment.items() if key.startswith(("IOTHUB_", "SLIPWAY_"))}
    service = open_rollouts(read_config(stage.home, environment))
    started = service.start(service.plan(RolloutRequest("digits:1", waves="1,100%", terms=SOAKING)))
    until(lambda: (service.tick_all(), any(stage.running().values()))[1], "the first wave")
    stage.hub.go_away()
    for _ in range(3):
        service.tick_all()
    told = [record.getMessage() for record in caplog.records if record.name == "slipway.rollouts"]
    assert len(told) == 1, "an outage is told once"
    assert told[0].startswith("rollout r-0001 waits: reading the twin of dev-0")
    stage.end_outage()
    until(
        lambda: (service.tick_all(), service.status(started.plan.id).state.value == "completed")[1],
        "the rest of the fleet",
    )
    assert stage.running() == {"dev-01": 1, "dev-02": 1, "dev-03": 1}
