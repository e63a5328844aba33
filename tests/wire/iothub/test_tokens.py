"""Tokens as the vendor's SDK brings them: of a policy, of the user's own making, and renewed while connected."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import pytest
from azure.iot.device import MethodResponse
from azure.iot.device.aio import IoTHubDeviceClient
from azure.iot.device.exceptions import ConnectionDroppedError, CredentialError, NoConnectionError

from simulators.iothub.core.access import make_token, signature
from simulators.iothub.core.methods import MethodRequest
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire
DEADLINE_S = 20.0
LEAVE_ATTEMPTS = 5
D1 = IdentityId("d1")


async def until(condition: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {DEADLINE_S} s in vain for {what}"
        await asyncio.sleep(0.02)
    return value


def run(story: Awaitable[None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(story, 60)

    asyncio.run(bounded())


async def leave(client: IoTHubDeviceClient) -> None:
    """Shut down a client whose link may be cut at this very moment.

    Its disconnect raises where the cut came between the SDK's look at its state and paho's. Afterwards the client knows
    that it is disconnected, and the next request goes through.
    """
    for _ in range(LEAVE_ATTEMPTS - 1):
        with contextlib.suppress(NoConnectionError, ConnectionDroppedError):
            await client.shutdown()
            return
    await client.shutdown()


def connection_of(hub: BackgroundHub) -> int | None:
    return hub.call(lambda: hub.server.switchboard.hub.connection_of(D1))


def policy_key(hub: BackgroundHub, policy: str) -> str:
    return hub.call(lambda: hub.server.switchboard.hub.gatekeeper.policy(policy).keys[0])


def token_of(hub: BackgroundHub, policy: str, order: str) -> str:
    """A token for d1, its fields in the given order."""
    resource = quote(f"{hub.host_name}/devices/d1", safe="")
    expires_at = int(time.time()) + 600
    fields = {
        "sr": resource,
        "sig": quote(signature(policy_key(hub, policy), resource, expires_at), safe=""),
        "se": str(expires_at),
        "skn": policy,
    }
    return "SharedAccessSignature " + "&".join(f"{key}={fields[key]}" for key in order.split())


TOKENS = {
    "the policy for devices": ("device", "sr sig se skn", True),
    "the owner's policy, its fields in another order": ("iothubowner", "skn se sig sr", True),
    "a policy that does not connect devices": ("service", "sr sig se skn", False),
}


@pytest.mark.parametrize("story_name", TOKENS)
def test_a_device_comes_with_a_token_of(hub: BackgroundHub, story_name: str) -> None:
    policy, order, is_let_in = TOKENS[story_name]
    hub.create_device("d1")

    async def story() -> None:
        client = IoTHubDeviceClient.create_from_sastoken(
            token_of(hub, policy, order), server_verification_cert=hub.ca_file.read_text()
        )
        if is_let_in:
            await client.connect()
            assert hub.connected_clients() == ["d1"]
        else:
            with pytest.raises(CredentialError):
                await client.connect()
        await client.shutdown()

    run(story())


async def listen_for_methods(hub: BackgroundHub, client: Any) -> None:
    async def on_method(request: Any) -> None:
        await client.send_method_response(MethodResponse.create_from_method_request(request, 200, "here"))

    client.on_method_request_received = on_method
    await until(lambda: hub.call(lambda: hub.server.switchboard.hub.hears(D1, "methods")), "the subscription")


async def call_method(hub: BackgroundHub) -> Any:
    request = MethodRequest.read({"methodName": "ping", "connectTimeoutInSeconds": 10})
    result = await asyncio.to_thread(hub.wait_for, lambda: hub.server.switchboard.invoke(D1, request))
    return result.document()


def test_a_renewed_token_is_a_new_connection_that_hears_what_the_old_one_heard(hub: BackgroundHub) -> None:
    async def story() -> None:
        # The SDK renews a token 120 s before its end, so this one at once.
        client = IoTHubDeviceClient.create_from_connection_string(
            hub.create_device("d1"), server_verification_cert=hub.ca_file.read_text(), sastoken_ttl=123
        )
        try:
            await client.connect()
            first = connection_of(hub)
            await listen_for_methods(hub, client)
            await until(lambda: connection_of(hub) not in (first, None), "the new connection")
            assert await call_method(hub) == {"status": 200, "payload": "here"}
            await client.send_message("after the renewal")
        finally:
            await client.shutdown()

    run(story())


def test_a_user_renews_a_token_when_the_sdk_asks_for_it(hub: BackgroundHub) -> None:
    async def story() -> None:
        connection_string = hub.create_device("d1")
        key = connection_string.partition("SharedAccessKey=")[2]

        def token(lifetime_s: int) -> str:
            return make_token(key, f"{hub.host_name}/devices/d1", int(time.time()) + lifetime_s)

        client = IoTHubDeviceClient.create_from_sastoken(token(123), server_verification_cert=hub.ca_file.read_text())

        async def renew() -> None:
            await client.update_sastoken(token(600))

        client.on_new_sastoken_required = renew
        try:
            await client.connect()
            first = connection_of(hub)
            await until(lambda: connection_of(hub) not in (first, None), "the new connection")
            await listen_for_methods(hub, client)
            assert await call_method(hub) == {"status": 200, "payload": "here"}
        finally:
            await client.shutdown()

    run(story())


def test_two_clients_of_one_device_take_it_from_each_other_for_as_long_as_both_want_it(hub: BackgroundHub) -> None:
    async def story() -> None:
        connection_string = hub.create_device("d1")
        clients = [
            IoTHubDeviceClient.create_from_connection_string(
                connection_string, server_verification_cert=hub.ca_file.read_text(), connection_retry_interval=1
            )
            for _ in range(2)
        ]
        try:
            for client in clients:
                await client.connect()
            seen: set[int | None] = set()
            await until(lambda: seen.add(connection_of(hub)) or len(seen - {None}) >= 4, "the fight")  # type: ignore[func-returns-value]
            assert len(hub.connected_clients()) <= 1
        finally:
            # One after the other, for the fight ends only when one has given up.
            for client in clients:
                await leave(client)
        await until(lambda: hub.connected_clients() == [], "both to leave")

    run(story())
