"""The unmodified azure-iot-hub sends messages to devices over AMQP (uamqp), and uamqp reads what became of them."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import certifi
import pytest
import uamqp
from azure.core.credentials import AccessToken
from azure.iot.device import IoTHubDeviceClient, Message
from azure.iot.hub import IoTHubRegistryManager
from uamqp import TransportType, authentication

from simulators.iothub.core.access import make_token
from simulators.iothub.core.cloud_to_device import CloudMessage
from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire
DEADLINE_S = 20.0
TRANSPORTS = {"TCP": TransportType.Amqp, "a websocket": TransportType.AmqpOverWebsocket}
Connect = Callable[[str], IoTHubRegistryManager]


@pytest.fixture(autouse=True)
def trusting_certifi(hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """uamqp trusts certifi's bundle and nothing else: it asks where that is when a client is made."""
    monkeypatch.setattr(certifi, "where", lambda: str(hub.ca_file))


@pytest.fixture
def connect(hub: BackgroundHub, request: pytest.FixtureRequest) -> Connect:
    def make(transport: str = "TCP") -> IoTHubRegistryManager:
        if transport == "a websocket" and hub.endpoints.https_port != 443:
            pytest.skip("uamqp knows no port for websockets but 443, which may not be bound here")
        manager = IoTHubRegistryManager(
            connection_string=hub.service_connection_string, transport_type=TRANSPORTS[transport]
        )
        request.addfinalizer(manager.amqp_svc_client.disconnect_sync)
        return manager

    return make


def queued(hub: BackgroundHub, device: str) -> CloudMessage | None:
    def receive() -> CloudMessage | None:
        entry = hub.server.switchboard.hub.cloud_to_device.receive(device, time.time())
        return entry.item if entry else None

    return hub.call(receive)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_message_is_queued_as_it_was_sent(hub: BackgroundHub, connect: Connect, transport: str) -> None:
    hub.create_device("d1")
    expires_at = int(time.time() + 600)
    properties = {
        "messageId": "m1",
        "correlationId": "c1",
        "contentType": "application/json",
        "contentEncoding": "utf-8",
        "expiryTimeUtc": expires_at * 1000,
        "iothub-ack": "full",
        "k": "v/=&é",
    }
    connect(transport).send_c2d_message("d1", '{"n":1}', properties)
    assert queued(hub, "d1") == CloudMessage(
        message_id="m1",
        correlation_id="c1",
        to="/devices/d1/messages/deviceBound",
        content_type="application/json",
        content_encoding="utf-8",
        expires_at=float(expires_at),
        ack="full",
        properties={"k": "v/=&é"},
        body=b'{"n":1}',
    )


def test_a_device_hears_a_message_that_the_service_sdk_sent(hub: BackgroundHub, connect: Connect) -> None:
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.create_device("d1"), server_verification_cert=hub.ca_file.read_text()
    )
    heard: list[Message] = []
    has_heard = threading.Event()

    def note(message: Message) -> None:
        heard.append(message)
        has_heard.set()

    client.on_message_received = note
    client.connect()
    try:
        connect("TCP").send_c2d_message("d1", "hello", {"k": "v"})
        assert has_heard.wait(DEADLINE_S)
    finally:
        client.shutdown()
    assert [(message.data, message.custom_properties) for message in heard] == [(b"hello", {"k": "v"})]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_unknown_device_is_refused_and_the_next_message_goes_through(
    hub: BackgroundHub, connect: Connect, transport: str
) -> None:
    hub.create_device("d1")
    manager = connect(transport)
    with pytest.raises(Exception, match="C2D message send failure"):
        manager.send_c2d_message("nobody", "hello")
    manager.send_c2d_message("d1", "hello")
    found = queued(hub, "d1")
    assert found
    assert found.body == b"hello"


def test_the_fifty_first_message_is_refused(hub: BackgroundHub, connect: Connect) -> None:
    hub.create_device("d1")
    manager = connect("TCP")
    for number in range(50):
        manager.send_c2d_message("d1", str(number))
    with pytest.raises(Exception, match="C2D message send failure"):
        manager.send_c2d_message("d1", "one too many")


def test_a_message_of_many_frames_is_taken_whole(hub: BackgroundHub, connect: Connect) -> None:
    hub.create_device("d1")
    body = "x" * 65_000
    connect("TCP").send_c2d_message("d1", body)
    found = queued(hub, "d1")
    assert found
    assert found.body == body.encode()


def test_a_wrong_key_is_refused(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    wrong = hub.service_connection_string.partition("SharedAccessKey=")[0] + "SharedAccessKey=d3Jvbmc="
    manager = IoTHubRegistryManager.from_connection_string(wrong)
    with pytest.raises(Exception, match="401"):
        manager.send_c2d_message("d1", "hello")
    manager.amqp_svc_client.disconnect_sync()
    assert queued(hub, "d1") is None


# What became of them --------------------------------------------------------------------------------------------------


def receiver(hub: BackgroundHub, path: str) -> uamqp.ReceiveClient:
    host = urlsplit(f"//{hub.authority}").hostname or ""
    policy = hub.call(lambda: hub.server.switchboard.hub.gatekeeper.policy("service"))

    def get_token() -> Any:
        expires_at = int(time.time()) + 600
        return AccessToken(make_token(policy.keys[0], host, expires_at, "service"), expires_at)

    auth = authentication.JWTTokenAuth(
        audience=f"https://{host}",
        uri=f"https://{host}",
        get_token=get_token,
        token_type=b"servicebus.windows.net:sastoken",
    )
    auth.update_token()
    return uamqp.ReceiveClient(f"amqps://{host}{path}", auth=auth, timeout=DEADLINE_S * 1000, auto_complete=False)


def finish(hub: BackgroundHub, message_id: str) -> None:
    """A device completes a message whose sender wants to hear of it."""

    def act() -> None:
        core, now = hub.server.switchboard.hub, time.time()
        core.send_to_device("d1", CloudMessage(message_id, ack="full"), now)
        entry = core.cloud_to_device.receive("d1", now)
        assert entry
        core.cloud_to_device.complete("d1", entry.lock_token, now)

    hub.call(act)


def feedback_count(hub: BackgroundHub) -> int:
    return hub.call(lambda: len(hub.server.switchboard.hub.feedback))


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


def test_feedback_is_read_with_uamqp_and_gone_when_accepted(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    finish(hub, "m1")
    client = receiver(hub, "/messages/serviceBound/feedback")
    try:
        (message,) = client.receive_message_batch(max_batch_size=1)
        (record,) = json.loads(b"".join(message.get_data()))
        assert (record["originalMessageId"], record["deviceId"], record["statusCode"]) == ("m1", "d1", "Success")
        assert message.properties.content_type == b"application/vnd.microsoft.iothub.feedback.json"
        assert feedback_count(hub) == 1
        message.accept()
        client.do_work()
        wait_until(lambda: feedback_count(hub) == 0)
    finally:
        client.close()


def test_feedback_that_nobody_settled_is_for_the_next_reader(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    finish(hub, "m1")
    for _ in range(2):
        client = receiver(hub, "/messages/serviceBound/feedback")
        (message,) = client.receive_message_batch(max_batch_size=1)
        assert json.loads(b"".join(message.get_data()))[0]["originalMessageId"] == "m1"
        client.close()
    assert feedback_count(hub) == 1


def test_feedback_comes_while_the_reader_waits(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    client = receiver(hub, "/messages/servicebound/feedback")
    timer = threading.Timer(1.0, finish, (hub, "m1"))
    timer.start()
    try:
        (message,) = client.receive_message_batch(max_batch_size=1)
        assert json.loads(b"".join(message.get_data()))[0]["originalMessageId"] == "m1"
    finally:
        timer.join()
        client.close()


def test_file_notifications_are_read_with_uamqp(hub: BackgroundHub) -> None:
    hub.call(lambda: hub.server.switchboard.hub.file_notifications.post({"blobName": "b"}, time.time()))
    client = receiver(hub, "/messages/serviceBound/filenotifications")
    try:
        (message,) = client.receive_message_batch(max_batch_size=1)
        assert json.loads(b"".join(message.get_data())) == {"blobName": "b"}
    finally:
        client.close()
