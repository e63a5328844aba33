"""The unmodified azure-iot-device against the hub, over real sockets."""

import asyncio
import base64
import datetime
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from azure.iot.device import IoTHubDeviceClient, Message, MethodResponse
from azure.iot.device.aio import IoTHubDeviceClient as AioDeviceClient
from azure.iot.device.aio import IoTHubModuleClient as AioModuleClient
from azure.iot.device.exceptions import ClientError, CredentialError, OperationCancelled, OperationTimeout, ServiceError

from simulators.iothub.core.access import make_token
from simulators.iothub.core.methods import MethodRequest
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub
from simulators.iothub.server.certificates import ensure_certificates

pytestmark = pytest.mark.wire
DEADLINE_S = 20.0


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until a condition holds and return what it gave."""
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {DEADLINE_S} s in vain for {what}"
        await asyncio.sleep(0.02)
    return value


def events_of(hub: BackgroundHub) -> list[dict[str, Any]]:
    events = hub.call(lambda: hub.server.switchboard.hub.events.read(0, 1000))
    return [event.document() for event in events if event.source == "Telemetry"]


def patch_desired(hub: BackgroundHub, identity_id: IdentityId, patch: dict[str, Any]) -> None:
    body = {"properties": {"desired": patch}}
    hub.call(lambda: hub.server.switchboard.hub.patch_twin(identity_id, body, None, time.time()))


def hears(hub: BackgroundHub, identity_id: IdentityId, feature: str) -> bool:
    return hub.call(lambda: hub.server.switchboard.hub.hears(identity_id, feature))


def connection_state(hub: BackgroundHub, identity_id: IdentityId) -> str:
    return hub.call(lambda: hub.server.switchboard.hub.registry.get(identity_id).connection_state)


def note_into(heard: list[Any]) -> Callable[[Any], Awaitable[None]]:
    """A handler that keeps what it got; the SDK calls it from a loop of its own, in another thread."""

    async def note(value: Any) -> None:
        heard.append(value)

    return note


def run(story: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(story, 60)

    asyncio.run(bounded())


def module_client(hub: BackgroundHub, device_id: str = "d1", **settings: Any) -> AioModuleClient:
    connection_string = hub.create_module(device_id, "slipway")
    return AioModuleClient.create_from_connection_string(
        connection_string, server_verification_cert=hub.ca_file.read_text(), **settings
    )


D1, MODULE = IdentityId("d1"), IdentityId("d1", "slipway")


def test_a_synchronous_device_does_everything(hub: BackgroundHub) -> None:
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.create_device("d1"), server_verification_cert=hub.ca_file.read_text()
    )
    patches: list[dict[str, Any]] = []
    arrived = threading.Event()

    def on_patch(patch: dict[str, Any]) -> None:
        patches.append(patch)
        arrived.set()

    def on_method(request: Any) -> None:
        client.send_method_response(MethodResponse(request.request_id, 201, {"said": request.payload}))

    try:
        client.connect()
        assert connection_state(hub, D1) == "Connected"
        message = Message('{"t": 21}', message_id="a/b c", content_encoding="utf-8", content_type="application/json")
        message.correlation_id = "c-1"
        message.custom_properties["k y"] = "v&=1/é"
        client.send_message(message)
        client.on_twin_desired_properties_patch_received = on_patch
        client.on_method_request_received = on_method
        assert client.get_twin() == {"desired": {"$version": 1}, "reported": {"$version": 1}}
        client.patch_twin_reported_properties({"a": {"b": 1}})
        patch_desired(hub, D1, {"x": 1})
        assert arrived.wait(DEADLINE_S)
        assert patches == [{"x": 1, "$version": 2}]
        assert client.get_twin() == {
            "desired": {"x": 1, "$version": 2},
            "reported": {"a": {"b": 1}, "$version": 2},
        }
        answer = invoke(hub, D1, {"methodName": "say", "payload": [1, None]})
        assert answer == {"status": 201, "payload": {"said": [1, None]}}
    finally:
        client.shutdown()
    (event,) = events_of(hub)
    assert {key: event[key] for key in ("deviceId", "moduleId", "source", "properties", "body")} == {
        "deviceId": "d1",
        "moduleId": "",
        "source": "Telemetry",
        "properties": {"k y": "v&=1/é"},
        "body": "eyJ0IjogMjF9",
    }
    system = {key: value for key, value in event["systemProperties"].items() if not key.startswith("connection")}
    assert system == {
        "messageId": "a/b c",
        "correlationId": "c-1",
        "contentType": "application/json",
        "contentEncoding": "utf-8",
    }
    assert connection_state(hub, D1) == "Disconnected"


def invoke(hub: BackgroundHub, identity_id: IdentityId, body: dict[str, Any]) -> dict[str, Any]:
    result = hub.wait_for(lambda: hub.server.switchboard.invoke(identity_id, MethodRequest.read(body)))
    if result.error:
        raise result.error
    return result.document()


def test_an_asynchronous_module_does_everything(hub: BackgroundHub) -> None:
    async def story() -> None:
        client = module_client(hub)
        patches: list[dict[str, Any]] = []

        async def on_method(request: Any) -> None:
            await client.send_method_response(MethodResponse.create_from_method_request(request, 200, None))

        try:
            await client.connect()
            await asyncio.gather(*(client.send_message(f"m{number}") for number in range(50)))
            client.on_twin_desired_properties_patch_received = note_into(patches)
            client.on_method_request_received = on_method
            await client.patch_twin_reported_properties({"a": 1, "b": 2})
            await client.patch_twin_reported_properties({"a": None})
            assert (await client.get_twin())["reported"] == {"b": 2, "$version": 3}
            await until(lambda: hears(hub, MODULE, "methods"), "the subscription to methods")
            patch_desired(hub, MODULE, {"models": {"digits": {"generation": 1}}})
            patch_desired(hub, MODULE, {"models": {"digits": None}})
            await until(lambda: len(patches) == 2, "two patches")
            assert patches == [
                {"models": {"digits": {"generation": 1}}, "$version": 2},
                {"models": {"digits": None}, "$version": 3},
            ]
            answer = await asyncio.to_thread(invoke, hub, MODULE, {"methodName": "ping"})
            assert answer == {"status": 200, "payload": None}
        finally:
            await client.shutdown()
        assert sorted(event["body"] for event in events_of(hub)) == sorted(
            base64.b64encode(f"m{number}".encode()).decode() for number in range(50)
        )
        assert {(event["deviceId"], event["moduleId"]) for event in events_of(hub)} == {("d1", "slipway")}

    run(story())


def test_a_wrong_key_is_a_credential_error(hub: BackgroundHub) -> None:
    async def story() -> None:
        connection_string = hub.create_device("d1").rpartition("=")[0][: -len("SharedAccessKey")]
        wrong = f"{connection_string}SharedAccessKey=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
        client = AioDeviceClient.create_from_connection_string(wrong, server_verification_cert=hub.ca_file.read_text())
        with pytest.raises(CredentialError):
            await client.connect()
        await client.shutdown()

    run(story())


def test_a_disabled_device_and_an_unknown_one_are_credential_errors(hub: BackgroundHub) -> None:
    async def story() -> None:
        connection_string = hub.create_device("d1")
        disabled = {"deviceId": "d1", "status": "disabled"}
        hub.call(lambda: hub.server.switchboard.hub.put_identity(D1, disabled, "*", time.time()))
        for text in (connection_string, connection_string.replace("DeviceId=d1", "DeviceId=d9")):
            client = AioDeviceClient.create_from_connection_string(
                text, server_verification_cert=hub.ca_file.read_text()
            )
            with pytest.raises(CredentialError):
                await client.connect()
            await client.shutdown()

    run(story())


def user_token(hub: BackgroundHub, device_id: str, expires_at: float) -> str:
    identity = hub.call(lambda: hub.server.switchboard.hub.registry.get(IdentityId(device_id)))
    return make_token(str(identity.keys[0]), f"{hub.host_name}/devices/{device_id}", int(expires_at))


def test_an_expired_token_of_the_users_own_is_a_credential_error(hub: BackgroundHub) -> None:
    async def story() -> None:
        hub.create_device("d1")
        # The SDK refuses to start with an expired token, so it gets one that ends while it waits.
        token = user_token(hub, "d1", time.time() + 2)
        client = AioDeviceClient.create_from_sastoken(token, server_verification_cert=hub.ca_file.read_text())
        await until(lambda: time.time() > int(token.rpartition("se=")[2]) + 0.1, "the end of the token")
        with pytest.raises(CredentialError):
            await client.connect()
        await client.shutdown()

    run(story())


def test_the_hub_closes_the_connection_when_the_token_ends(hub: BackgroundHub) -> None:
    async def story() -> None:
        hub.create_device("d1")
        token = user_token(hub, "d1", time.time() + 3)
        client = AioDeviceClient.create_from_sastoken(
            token, server_verification_cert=hub.ca_file.read_text(), connection_retry=False
        )
        await client.connect()
        assert connection_state(hub, D1) == "Connected"
        await until(lambda: connection_state(hub, D1) == "Disconnected", "the hub to close")
        assert time.time() >= int(token.rpartition("se=")[2])
        await client.shutdown()

    run(story())


def test_a_certificate_of_another_authority_is_not_trusted(hub: BackgroundHub, tmp_path: Any) -> None:
    async def story() -> None:
        foreign = ensure_certificates(tmp_path, ("localhost",), datetime.datetime.now(datetime.UTC))
        client = AioDeviceClient.create_from_connection_string(
            hub.create_device("d1"), server_verification_cert=foreign.ca.read_text()
        )
        with pytest.raises(ClientError):
            await client.connect()
        await client.shutdown()

    run(story())


def test_subscriptions_outlive_a_killed_connection(hub: BackgroundHub) -> None:
    async def story() -> None:
        client = module_client(hub)
        patches: list[dict[str, Any]] = []
        called: list[str] = []

        async def on_method(request: Any) -> None:
            called.append(request.name)
            await client.send_method_response(MethodResponse.create_from_method_request(request, 200, {}))

        try:
            await client.connect()
            client.on_twin_desired_properties_patch_received = note_into(patches)
            client.on_method_request_received = on_method
            await until(lambda: hears(hub, MODULE, "methods") and hears(hub, MODULE, "desiredPatches"), "subscriptions")
            assert hub.kill_connections("d1/slipway") == 1
            await until(lambda: connection_state(hub, MODULE) == "Connected", "the SDK to come back")
            patch_desired(hub, MODULE, {"a": 1})
            # After a reconnect the SDK may read the whole twin too, and tell of it as a patch of its own.
            await until(lambda: {"a": 1, "$version": 2} in patches, "the patch")
            await asyncio.to_thread(invoke, hub, MODULE, {"methodName": "ping", "connectTimeoutInSeconds": 10})
            assert called == ["ping"]
        finally:
            await client.shutdown()

    run(story())


async def send_until_accepted(client: AioModuleClient, body: str) -> None:
    """Send a message again for as long as the SDK says that it failed: a send that finds no hub is not kept by it."""
    end = time.monotonic() + DEADLINE_S
    while True:
        try:
            await client.send_message(body)
            return
        except (ClientError, OperationCancelled, OperationTimeout):
            assert time.monotonic() < end, f"{body} was not accepted in {DEADLINE_S} s"
            await asyncio.sleep(0.1)


def test_messages_sent_through_an_outage_all_arrive(hub: BackgroundHub) -> None:
    async def story() -> None:
        client = module_client(hub, connection_retry_interval=1)
        try:
            await client.connect()
            await client.send_message("before")
            await asyncio.to_thread(hub.go_away)
            sending = asyncio.gather(*(send_until_accepted(client, f"m{number}") for number in range(10)))
            await until(lambda: not client.connected, "the outage to be noticed")
            await asyncio.to_thread(hub.come_back)
            await asyncio.wait_for(sending, 60)
        finally:
            await client.shutdown()
        bodies = {base64.b64decode(event["body"]).decode() for event in events_of(hub)}
        assert bodies == {"before", *(f"m{number}" for number in range(10))}

    run(story())


def test_a_second_client_takes_over_the_first(hub: BackgroundHub) -> None:
    async def story() -> None:
        connection_string = hub.create_device("d1")
        clients = [
            AioDeviceClient.create_from_connection_string(
                connection_string, server_verification_cert=hub.ca_file.read_text(), connection_retry=False
            )
            for _ in range(2)
        ]
        try:
            await clients[0].connect()
            await clients[1].connect()
            await until(lambda: not clients[0].connected, "the first client to lose its connection")
            assert clients[1].connected
            await clients[1].send_message("mine")
            assert hub.connected_clients() == ["d1"]
        finally:
            for client in clients:
                await client.shutdown()

    run(story())


def test_a_refused_report_is_an_error_for_the_device(hub: BackgroundHub) -> None:
    async def story() -> None:
        client = module_client(hub)
        try:
            await client.connect()
            with pytest.raises(ClientError) as refused:
                await client.patch_twin_reported_properties({"too": "x" * 4097})
            assert isinstance(refused.value.__cause__, ServiceError)
            assert "400" in str(refused.value.__cause__)
            assert (await client.get_twin())["reported"] == {"$version": 1}
        finally:
            await client.shutdown()

    run(story())
