"""Who may connect, and what outlives a connection."""

import base64

import pytest
from azure.iot.device import Message
from azure.iot.device.exceptions import CredentialError
from azure.iot.hub.models import Twin, TwinProperties

from tests.hub.conftest import Thing, eventually

pytestmark = pytest.mark.wire


def is_connected(registry, thing) -> bool:
    return registry.get_device(thing.device_id).connection_state == "Connected"


def test_the_registry_knows_who_is_connected(registry, thing):
    client = thing.client()
    assert not is_connected(registry, thing)
    client.connect()
    eventually(lambda: is_connected(registry, thing), "connected")
    client.shutdown()
    eventually(lambda: not is_connected(registry, thing), "disconnected")


def test_a_wrong_key_is_refused(thing):
    wrong = base64.b64encode(b"x" * 32).decode()
    parts = thing.connection_string.rpartition("SharedAccessKey=")
    client = Thing(thing.device_id, f"{parts[0]}SharedAccessKey={wrong}", thing.hub).client(connection_retry=False)
    with pytest.raises(CredentialError):
        client.connect()
    client.shutdown()


def test_a_disabled_device_is_refused_and_a_connected_one_is_cut_off(registry, thing):
    client = thing.client(connection_retry=False)
    client.connect()
    found = registry.get_device(thing.device_id)
    keys = found.authentication.symmetric_key
    registry.update_device_with_sas(thing.device_id, found.etag, keys.primary_key, keys.secondary_key, "disabled")
    eventually(lambda: not client.connected, "the connection is cut")
    client.shutdown()
    again = thing.client(connection_retry=False)
    with pytest.raises(CredentialError):
        again.connect()
    again.shutdown()


def test_a_second_connection_takes_the_place_of_the_first(thing):
    first, second = thing.client(connection_retry=False), thing.client(connection_retry=False)
    first.connect()
    second.connect()
    eventually(lambda: not first.connected, "the first is displaced")
    second.send_message("still here")
    assert second.connected
    first.shutdown()
    second.shutdown()


def test_subscriptions_outlive_a_connection(registry, thing, connected):
    heard: list[dict] = []
    connected.on_twin_desired_properties_patch_received = heard.append
    connected.disconnect()
    connected.connect()
    registry.update_twin(thing.device_id, Twin(properties=TwinProperties(desired={"a": 1})))
    eventually(lambda: any(patch.get("a") == 1 for patch in heard), "the patch after the reconnect")


@pytest.mark.parametrize("size_bytes", [0, 1, 4096, 200_000])
def test_telemetry_of_any_size_is_acknowledged(connected, size_bytes):
    message = Message(b"x" * size_bytes, content_encoding="utf-8", content_type="application/json")
    message.custom_properties["k y"] = "v&=1/é"
    connected.send_message(message)


def test_a_message_that_is_too_large_is_refused_before_it_is_sent(connected):
    with pytest.raises(ValueError, match="exceed"):
        connected.send_message(Message(b"x" * 300_000))
