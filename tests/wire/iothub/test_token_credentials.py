"""The unmodified azure-iot-hub with a credential object instead of a connection string, and its HTTP runtime."""

import json
import time
from typing import Any

import certifi
import pytest
from azure.core.credentials import AccessToken
from azure.iot.hub import (
    DigitalTwinClient,
    IoTHubConfigurationManager,
    IoTHubHttpRuntimeManager,
    IoTHubJobManager,
    IoTHubRegistryManager,
)

from simulators.iothub.core.cloud_to_device import CloudMessage
from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire


class Credential:
    """What azure-identity gives, with a token of nobody."""

    def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        return AccessToken("header.payload.signature", int(time.time()) + 3600)


def test_every_manager_takes_a_credential_object(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    host, credential = hub.authority, Credential()
    assert IoTHubRegistryManager.from_token_credential(host, credential).get_device("d1").device_id == "d1"
    assert IoTHubConfigurationManager.from_token_credential(host, credential).get_configurations(10) == []
    assert IoTHubJobManager.from_token_credential(host, credential).get_import_export_jobs() == []
    assert DigitalTwinClient.from_token_credential(host, credential).get_digital_twin("d1")
    assert IoTHubHttpRuntimeManager.from_token_credential(host, credential).receive_feedback_notification() is None


def test_messages_are_sent_with_a_credential_object(hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certifi, "where", lambda: str(hub.ca_file))
    hub.create_device("d1")
    manager = IoTHubRegistryManager.from_token_credential(hub.host_name, Credential())
    try:
        manager.send_c2d_message("d1", "hello")
    finally:
        manager.amqp_svc_client.disconnect_sync()
    entry = hub.call(lambda: hub.server.switchboard.hub.cloud_to_device.receive("d1", time.time()))
    assert entry is not None
    assert entry.item.body == b"hello"


def test_feedback_is_abandoned_and_completed_by_the_http_runtime(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    core = hub.server.switchboard.hub

    def have_feedback() -> None:
        core.send_to_device("d1", CloudMessage("m1", ack="full"), time.time())
        delivery = core.cloud_to_device.receive("d1", time.time())
        assert delivery is not None
        core.cloud_to_device.complete("d1", delivery.lock_token, time.time())

    hub.call(have_feedback)
    runtime = IoTHubHttpRuntimeManager.from_connection_string(hub.service_connection_string)
    # The SDK throws away what it receives, and with it the lock; so the lock is taken at the hub.
    batch = hub.call(lambda: core.feedback.receive(time.time()))
    assert json.loads(batch.body)[0]["originalMessageId"] == "m1"
    runtime.abandon_feedback_notification(batch.lock_token)
    again = hub.call(lambda: core.feedback.receive(time.time()))
    assert again.body == batch.body
    runtime.complete_feedback_notification(again.lock_token)
    assert hub.call(lambda: core.feedback.receive(time.time())) is None
