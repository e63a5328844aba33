"""MQTT over a websocket: the vendor's SDK on port 443, and frames of our own on whichever port the hub has."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from azure.iot.device import IoTHubDeviceClient, MethodResponse
from azure.iot.device.aio import IoTHubDeviceClient as AioDeviceClient
from azure.iot.device.aio import IoTHubModuleClient as AioModuleClient
from azure.iot.device.exceptions import CredentialError

from simulators.iothub.core.access import make_token
from simulators.iothub.core.methods import MethodRequest
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import StorageError
from simulators.iothub.server.background import BackgroundHub
from simulators.iothub.wire.client import ClientSession, Connected, Event, PingAnswered, Published, Refused, Subscribed
from simulators.iothub.wire.mqtt import ConnackCode, Connect

pytestmark = pytest.mark.wire
DEADLINE_S = 20.0
D1 = IdentityId("d1")


@pytest.fixture
def hub_on_443(hub: BackgroundHub) -> BackgroundHub:
    if hub.endpoints.https_port != 443:
        pytest.skip("the SDK knows no other port for websockets than 443, which may not be bound here")
    return hub


def run(story: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(story, 60)

    asyncio.run(bounded())


async def until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {DEADLINE_S} s in vain for {what}"
        await asyncio.sleep(0.02)
    return value


def bodies(hub: BackgroundHub) -> list[bytes]:
    events = hub.call(lambda: hub.server.switchboard.hub.events.read(0, 1000))
    return [event.body for event in events if event.source == "Telemetry"]


# --- the vendor's SDK -----------------------------------------------------------------------------------------------


def test_a_synchronous_device_sends_telemetry_and_reads_its_twin(hub_on_443: BackgroundHub) -> None:
    client = IoTHubDeviceClient.create_from_connection_string(
        hub_on_443.create_device("d1"), server_verification_cert=hub_on_443.ca_file.read_text(), websockets=True
    )
    try:
        client.connect()
        client.send_message("over a websocket")
        client.patch_twin_reported_properties({"a": 1})
        assert client.get_twin()["reported"] == {"a": 1, "$version": 2}
    finally:
        client.shutdown()
    assert bodies(hub_on_443) == [b"over a websocket"]
    assert hub_on_443.connected_clients() == []


def test_an_asynchronous_module_hears_patches_and_methods_and_comes_back_after_a_cut(hub_on_443: BackgroundHub) -> None:
    hub, module = hub_on_443, IdentityId("d1", "m1")

    async def story() -> None:
        client = AioModuleClient.create_from_connection_string(
            hub.create_module("d1", "m1"), server_verification_cert=hub.ca_file.read_text(), websockets=True
        )
        patches: list[dict[str, Any]] = []

        async def on_patch(patch: dict[str, Any]) -> None:
            patches.append(patch)

        async def on_method(request: Any) -> None:
            await client.send_method_response(MethodResponse.create_from_method_request(request, 200, "pong"))

        try:
            await client.connect()
            client.on_twin_desired_properties_patch_received = on_patch
            client.on_method_request_received = on_method
            await asyncio.gather(*(client.send_message("x" * 100_000) for _ in range(20)))
            await until(
                lambda: all(
                    hub.call(lambda f=feature: hub.server.switchboard.hub.hears(module, f))  # type: ignore[misc]
                    for feature in ("methods", "desiredPatches")
                ),
                "the subscriptions",
            )
            assert hub.kill_connections("d1/m1") == 1
            await until(lambda: hub.connected_clients() == ["d1/m1"], "the SDK to come back")
            body = {"properties": {"desired": {"x": 1}}}
            hub.call(lambda: hub.server.switchboard.hub.patch_twin(module, body, None, time.time()))
            await until(lambda: {"x": 1, "$version": 2} in patches, "the patch")
            request = MethodRequest.read({"methodName": "ping", "connectTimeoutInSeconds": 10})
            answer = await asyncio.to_thread(hub.wait_for, lambda: hub.server.switchboard.invoke(module, request))
            assert answer.document() == {"status": 200, "payload": "pong"}
        finally:
            await client.shutdown()

    run(story())
    assert [len(body) for body in bodies(hub)] == [100_000] * 20


def test_a_wrong_key_is_a_credential_error_there_too(hub_on_443: BackgroundHub) -> None:
    async def story() -> None:
        head = hub_on_443.create_device("d1").partition("SharedAccessKey=")[0]
        client = AioDeviceClient.create_from_connection_string(
            f"{head}SharedAccessKey={'QUJD' * 8}",
            server_verification_cert=hub_on_443.ca_file.read_text(),
            websockets=True,
        )
        with pytest.raises(CredentialError):
            await client.connect()
        await client.shutdown()

    run(story())


# --- frames of our own ----------------------------------------------------------------------------------------------


class FrameClient:
    """Our client half behind a websocket; `frame_bytes` cuts what it sends."""

    def __init__(self, hub: BackgroundHub, websocket: aiohttp.ClientWebSocketResponse, frame_bytes: int) -> None:
        self.hub = hub
        self.websocket = websocket
        self.session = ClientSession()
        self._frame_bytes = frame_bytes

    async def connect(self, device_id: str, *, keep_alive_s: int = 60, token_s: int = 600) -> list[Event]:
        if self.hub.call(lambda: self.hub.server.switchboard.hub.registry.find(IdentityId(device_id))) is None:
            self.hub.create_device(device_id)
        identity = self.hub.call(lambda: self.hub.server.switchboard.hub.registry.get(IdentityId(device_id)))
        resource = f"{self.hub.host_name}/devices/{device_id}"
        self.session.connect(
            Connect(
                client_id=device_id,
                clean_session=False,
                keep_alive_s=keep_alive_s,
                username=f"{self.hub.host_name}/{device_id}/?api-version=2019-10-01",
                password=make_token(str(identity.keys[0]), resource, int(time.time()) + token_s).encode(),
            )
        )
        return await self.hear()

    async def hear(self) -> list[Event]:
        """Send what is to be sent, and wait for an answer."""
        data = self.session.data_to_send()
        for start in range(0, len(data), self._frame_bytes):
            await self.websocket.send_bytes(data[start : start + self._frame_bytes])
        events: list[Event] = []
        while not events:
            message = await self.websocket.receive(DEADLINE_S)
            assert message.type is aiohttp.WSMsgType.BINARY, f"the hub closed: {message}"
            events = self.session.receive(message.data)
        return events

    async def end(self) -> aiohttp.WSMsgType:
        """How the hub ends the websocket, after whatever it had still to say."""
        while (message := await self.websocket.receive(DEADLINE_S)).type is aiohttp.WSMsgType.BINARY:
            pass
        return message.type


@asynccontextmanager
async def at_websocket(
    hub: BackgroundHub, frame_bytes: int = 1 << 20, protocols: tuple[str, ...] = ("mqtt",)
) -> AsyncIterator[FrameClient]:
    context = ssl.create_default_context(cafile=str(hub.ca_file))
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"https://{hub.authority}/$iothub/websocket", protocols=protocols, ssl=context) as websocket,
    ):
        yield FrameClient(hub, websocket, frame_bytes)


@pytest.mark.parametrize("frame_bytes", [1, 7, 1 << 20])
def test_frames_may_cut_packets_anywhere(hub: BackgroundHub, frame_bytes: int) -> None:
    async def story() -> None:
        async with at_websocket(hub, frame_bytes) as client:
            assert client.websocket.protocol == "mqtt"
            assert await client.connect("d1") == [Connected(is_session_present=False)]
            packet_id = client.session.publish("devices/d1/messages/events/", b"hello")
            client.session.ping()
            heard = await client.hear()
            while len(heard) < 2:
                heard += await client.hear()
            assert heard == [Published(packet_id), PingAnswered()]
            client.session.disconnect()
            await client.websocket.send_bytes(client.session.data_to_send())
            assert await client.end() is aiohttp.WSMsgType.CLOSE

    run(story())
    assert bodies(hub) == [b"hello"]


def test_a_handshake_for_another_protocol_is_refused(hub: BackgroundHub) -> None:
    async def story() -> None:
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with at_websocket(hub, protocols=("AMQPWSB10",)):
                pass
        assert refused.value.status == 400

    run(story())


def test_a_text_frame_ends_the_connection(hub: BackgroundHub) -> None:
    async def story() -> None:
        async with at_websocket(hub) as client:
            await client.connect("d1")
            await client.websocket.send_str("hello")
            assert await client.end() is aiohttp.WSMsgType.CLOSE

    run(story())
    assert hub.connected_clients() == []


TIME_IS_OVER: dict[str, tuple[dict[str, int], float]] = {
    "a keep-alive of one second": ({"keep_alive_s": 1}, 1.4),
    "a token of two seconds": ({"token_s": 2}, 0.9),
}


@pytest.mark.parametrize("story_name", TIME_IS_OVER)
def test_a_silent_client_is_closed_after(hub: BackgroundHub, story_name: str) -> None:
    settings, at_least_s = TIME_IS_OVER[story_name]

    async def story() -> None:
        async with at_websocket(hub) as client:
            await client.connect("d1", **settings)
            started = time.monotonic()
            assert await client.end() is aiohttp.WSMsgType.CLOSE
            assert at_least_s <= time.monotonic() - started < 10

    run(story())
    assert hub.connected_clients() == []


def test_a_client_that_vanishes_is_seen_as_disconnected(hub: BackgroundHub) -> None:
    async def story() -> None:
        async with at_websocket(hub) as client:
            await client.connect("d1")
            assert hub.connected_clients() == ["d1"]
            client.websocket.get_extra_info("socket").shutdown(2)
            await until(lambda: hub.connected_clients() == [], "the hub to notice")

    run(story())


async def ask_until_stuck(client: FrameClient) -> int:
    """Ask for twins, a frame each, until the hub takes no more; returns how often."""
    for number in range(200_000):
        client.session.publish(f"$iothub/twin/GET/?$rid={number}&pad={'x' * 1000}", b" ", qos=0)
        try:
            async with asyncio.timeout(1):
                await client.websocket.send_bytes(client.session.data_to_send())
        except TimeoutError:
            return number
    raise AssertionError("the hub read everything")


def test_a_client_that_never_reads_is_not_read_either_and_harms_nobody(hub: BackgroundHub) -> None:
    def waiting_bytes() -> int:
        return hub.call(
            lambda: sum(dialogue.outlet.waiting_bytes for dialogue in hub.server.switchboard.dialogues_of("greedy"))
        )

    async def story() -> None:
        async with at_websocket(hub) as good, at_websocket(hub) as greedy:
            await good.connect("good")
            await greedy.connect("greedy")
            body = {"properties": {"desired": {f"k{number}": "x" * 4000 for number in range(8)}}}
            hub.call(lambda: hub.server.switchboard.hub.patch_twin(IdentityId("greedy"), body, None, time.time()))
            greedy.session.subscribe(("$iothub/twin/res/#", 1))
            assert await greedy.hear() == [Subscribed(1, (1,))]
            asked = await ask_until_stuck(greedy)
            # Each answer is 32 KB: what was read of its requests is bounded, and so is what waits for it.
            assert hub.connected_clients() == ["good", "greedy"]
            assert waiting_bytes() <= 256 * 1024
            assert asked > 10
            packet_id = good.session.publish("devices/good/messages/events/", b"x")
            assert await good.hear() == [Published(packet_id)]

    run(story())


class BrokenKeeper:
    """A journal on a full disk."""

    def flush(self) -> None:
        raise StorageError("the disk is full")


def test_what_cannot_be_written_down_is_not_acknowledged(hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        async with at_websocket(hub) as client:
            await client.connect("d1")
            monkeypatch.setattr(hub.server.switchboard, "_keeper", BrokenKeeper())
            client.session.publish("devices/d1/messages/events/", b"lost")
            await client.websocket.send_bytes(client.session.data_to_send())
            message = await client.websocket.receive(DEADLINE_S)
            assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR)

    run(story())


def test_a_connection_too_many_is_refused_for_now(hub: BackgroundHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulators.iothub.server.mqtt_websocket.connections_max", lambda: 1)

    async def story() -> None:
        async with at_websocket(hub) as first, at_websocket(hub) as second:
            assert await first.connect("d1") == [Connected(is_session_present=False)]
            assert await second.connect("d2") == [Refused(ConnackCode.SERVER_UNAVAILABLE)]

    run(story())


def test_an_outage_ends_websockets_and_a_new_one_resumes_the_session(hub: BackgroundHub) -> None:
    async def story() -> None:
        async with at_websocket(hub) as client:
            await client.connect("d1")
            await asyncio.to_thread(hub.go_away)
            assert await client.end() in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        await asyncio.to_thread(hub.come_back)
        async with at_websocket(hub) as client:
            assert await client.connect("d1") == [Connected(is_session_present=True)]

    run(story())
