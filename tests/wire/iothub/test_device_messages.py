"""Messages to devices: the unmodified device SDK, devices over HTTPS, feedback, and the command line."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from azure.iot.device import IoTHubDeviceClient
from azure.iot.device.aio import IoTHubDeviceClient as AioDeviceClient
from azure.iot.device.aio import IoTHubModuleClient as AioModuleClient

from simulators.iothub.core.access import make_token
from simulators.iothub.core.cloud_to_device import CloudMessage
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.server.background import BackgroundHub

pytestmark = pytest.mark.wire
DEADLINE_S = 20.0
D1 = IdentityId("d1")


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until a condition holds and return what it gave."""
    end = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"waited {DEADLINE_S} s in vain for {what}"
        time.sleep(0.02)
    return value


def send(hub: BackgroundHub, message_id: str = "m1", **fields: Any) -> None:
    message = CloudMessage(message_id, **fields)
    hub.call(lambda: hub.server.switchboard.hub.send_to_device("d1", message, time.time()))


def waiting(hub: BackgroundHub) -> int:
    return hub.call(lambda: hub.server.switchboard.hub.cloud_to_device.count("d1"))


def hears(hub: BackgroundHub, identity_id: IdentityId, feature: str) -> bool:
    return hub.call(lambda: hub.server.switchboard.hub.hears(identity_id, feature))


def as_device(
    hub: BackgroundHub, method: str, path: str, *, identity_id: IdentityId = D1, **settings: Any
) -> requests.Response:
    """A request with a token of the device or module itself."""
    key = hub.call(lambda: hub.server.switchboard.hub.registry.get(identity_id).keys[0])
    token = make_token(key, "/".join((hub.host_name, *identity_id.path)), int(time.time()) + 60)
    headers = {"Authorization": token, **settings.pop("headers", {})}
    return requests.request(
        method,
        f"https://{hub.authority}{path}",
        headers=headers,
        verify=str(hub.ca_file),
        timeout=DEADLINE_S,
        **settings,
    )


def as_service(hub: BackgroundHub, method: str, path: str, **settings: Any) -> requests.Response:
    policy = hub.call(lambda: hub.server.switchboard.hub.gatekeeper.policy("service"))
    headers = {"Authorization": make_token(policy.keys[0], hub.host_name, int(time.time()) + 60, policy.name)}
    return requests.request(
        method,
        f"https://{hub.authority}{path}",
        headers=headers,
        verify=str(hub.ca_file),
        timeout=DEADLINE_S,
        **settings,
    )


def outcome(hub: BackgroundHub) -> list[tuple[str, str]]:
    """Take one batch of feedback as a service does."""
    answer = as_service(hub, "GET", "/messages/serviceBound/feedback")
    if answer.status_code == 204:
        return []
    assert answer.headers["Content-Type"] == "application/vnd.microsoft.iothub.feedback.json"
    lock_token = answer.headers["ETag"].strip('"')
    assert as_service(hub, "DELETE", f"/messages/serviceBound/feedback/{lock_token}").status_code == 204
    return [(record["originalMessageId"], record["statusCode"]) for record in answer.json()]


@pytest.fixture
def device(hub: BackgroundHub) -> Iterator[IoTHubDeviceClient]:
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.create_device("d1"), server_verification_cert=hub.ca_file.read_text()
    )
    yield client
    client.shutdown()


def shown(message: Any) -> dict[str, Any]:
    return {
        "data": message.data,
        "message_id": message.message_id,
        "correlation_id": message.correlation_id,
        "user_id": message.user_id,
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "expiry": message.expiry_time_utc,
        "ack": message.ack,
        "custom": message.custom_properties,
    }


def test_the_sdk_hands_a_message_to_its_program_with_all_its_properties(
    hub: BackgroundHub, device: IoTHubDeviceClient
) -> None:
    heard: list[Any] = []
    device.on_message_received = heard.append
    send(
        hub, "a/b c=1&", correlation_id="c/1", user_id="ü", content_type="application/json", content_encoding="utf-8",
        expires_at=4_000_000_000.0, ack="full", properties={"k y": "v&=1/é", "empty": ""}, body=b'{"x": 1}\x00\xff',
    )  # fmt: skip
    (message,) = until(lambda: heard, "the message")
    assert shown(message) == {
        "data": b'{"x": 1}\x00\xff',
        "message_id": "a/b c=1&",
        "correlation_id": "c/1",
        "user_id": "ü",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "expiry": "2096-10-02T07:06:40.0000000Z",
        "ack": "full",
        "custom": {"k y": "v&=1/é", "empty": ""},
    }
    until(lambda: waiting(hub) == 0, "the PUBACK")
    assert outcome(hub) == [("a/b c=1&", "Success")]


def test_messages_find_the_asynchronous_sdk_again_after_its_connection_was_cut(hub: BackgroundHub) -> None:
    heard: list[bytes] = []
    connection_string = hub.create_device("d1")

    async def story() -> None:
        client = AioDeviceClient.create_from_connection_string(
            connection_string, server_verification_cert=hub.ca_file.read_text()
        )

        async def note(message: Any) -> None:
            heard.append(message.data)

        async def soon(condition: Callable[[], Any]) -> None:
            await asyncio.to_thread(until, condition, "the story to go on")

        try:
            await client.connect()
            client.on_message_received = note
            await soon(lambda: hears(hub, D1, "c2d"))
            send(hub, "m1", body=b"before")
            await soon(lambda: heard == [b"before"])
            # The SDK subscribes once in its life: the hub has to remember it.
            assert hub.kill_connections("d1") == 1
            send(hub, "m2", body=b"meanwhile")
            await soon(lambda: heard == [b"before", b"meanwhile"])
            send(hub, "m3", body=b"after")
            await soon(lambda: heard == [b"before", b"meanwhile", b"after"])
            await soon(lambda: waiting(hub) == 0)
        finally:
            await client.shutdown()

    asyncio.run(asyncio.wait_for(story(), 60))


def test_fifty_messages_that_waited_arrive_in_order(hub: BackgroundHub, device: IoTHubDeviceClient) -> None:
    for number in range(50):
        send(hub, str(number), body=b"x" * 1000)
    heard: list[str] = []
    device.on_message_received = lambda message: heard.append(message.message_id)
    until(lambda: waiting(hub) == 0, "the queue to empty")
    # Handlers run in threads of the SDK: all are heard, and the hub sent them in order.
    assert sorted(until(lambda: heard if len(heard) == 50 else None, "all to be heard"), key=int) == [
        str(number) for number in range(50)
    ]


def test_a_module_hears_of_its_inputs_and_says_on_which_output_it_speaks(hub: BackgroundHub) -> None:
    heard: list[Any] = []
    connection_string = hub.create_module("d1", "slipway")

    async def story() -> None:
        client = AioModuleClient.create_from_connection_string(
            connection_string, server_verification_cert=hub.ca_file.read_text()
        )

        async def note(message: Any) -> None:
            heard.append((message.input_name, message.data, message.custom_properties, message.message_id))

        try:
            await client.connect()
            client.on_message_received = note
            await asyncio.to_thread(
                until, lambda: hears(hub, IdentityId("d1", "slipway"), "inputs"), "the subscription"
            )
            answer = await asyncio.to_thread(
                as_service, hub, "POST", "/simulator/devices/d1/modules/slipway/inputs/in%2F1",
                json={"body": "aGk=", "properties": {"a b": "c/d"}, "messageId": "m1"},
            )  # fmt: skip
            assert answer.status_code == 204
            await asyncio.to_thread(until, lambda: heard, "the input")
            await client.send_message_to_output("done", "out 1")
        finally:
            await client.shutdown()

    asyncio.run(asyncio.wait_for(story(), 60))
    assert heard == [("in/1", b"hi", {"a b": "c/d"}, "m1")]
    answer = as_service(hub, "POST", "/simulator/devices/d1/modules/slipway/inputs/x", json={"body": ""})
    assert (answer.status_code, answer.headers["iothub-errorcode"]) == (404, "DeviceNotOnline")
    events = hub.call(lambda: hub.server.switchboard.hub.events.read(0, 100))
    assert [(e.body, e.system_properties.get("outputName")) for e in events if e.source == "Telemetry"] == [
        (b"done", "out 1")
    ]


def test_queues_feedback_and_uploads_outlive_a_restart(hub: BackgroundHub, tmp_path: Path) -> None:
    hub.stop()
    running = BackgroundHub(tmp_path / "kept", hub.address, is_kept=True)
    try:
        running.create_device("d1")
        info = as_device(running, "POST", "/devices/d1/files", json={"blobName": "f"}).json()
        send(running, "done", ack="full")
        as_device(running, "DELETE", f"{MESSAGES}/{received(running)[1]}")
        send(running, "locked", ack="full")
        received(running)
        send(running, "waiting", body=b"\x00\xff", properties={"k": "v"})
        running.stop()
        running = BackgroundHub(tmp_path / "kept", hub.address, is_kept=True)
        assert (waiting(running), outcome(running)) == (2, [("done", "Success")])
        # What was locked waits again, and remembers that it was delivered once.
        again = as_device(running, "GET", MESSAGES)
        assert (again.headers["iothub-messageid"], again.headers["iothub-deliverycount"]) == ("locked", "1")
        last = as_device(running, "GET", MESSAGES)
        assert (last.content, last.headers["iothub-app-k"]) == (b"\x00\xff", "v")
        ended = {"correlationId": info["correlationId"], "isSuccess": False}
        assert as_device(running, "POST", "/devices/d1/files/notifications", json=ended).status_code == 204
    finally:
        running.stop()


# --- devices over HTTPS -----------------------------------------------------------------------------------------------


def test_telemetry_is_posted_with_its_properties_as_headers(hub: BackgroundHub) -> None:
    hub.create_module("d1", "m1")
    headers = {
        "Content-Type": "application/x-form",
        "iothub-messageid": "m1",
        "IoTHub-CorrelationId": "c1",
        "iothub-contenttype": "application/json",
        "iothub-contentencoding": "utf-8",
        "iothub-app-Mixed-Case": "v 1",
        "iothub-app-k": "",
    }
    module = IdentityId("d1", "m1")
    assert as_device(hub, "POST", "/devices/d1/messages/events", data=b"\x00\xff", headers=headers).status_code == 204
    path = "/devices/d1/modules/m1/messages/events"
    assert as_device(hub, "POST", path, identity_id=module, data=b"").status_code == 204
    events = hub.call(lambda: hub.server.switchboard.hub.events.read(0, 10))
    assert [(e.source_id, e.body, e.system_properties, e.properties) for e in events if e.source == "Telemetry"] == [
        (
            D1,
            b"\x00\xff",
            {"messageId": "m1", "correlationId": "c1", "contentType": "application/json", "contentEncoding": "utf-8"},
            {"Mixed-Case": "v 1", "k": ""},
        ),
        (module, b"", {}, {}),
    ]
    largest = as_device(hub, "POST", "/devices/d1/messages/events", data=b"x" * 262_144)
    too_large = as_device(hub, "POST", "/devices/d1/messages/events", data=b"x" * 262_145)
    assert (largest.status_code, too_large.status_code) == (204, 413)
    assert too_large.headers["iothub-errorcode"] == "MessageTooLarge"


MESSAGES = "/devices/d1/messages/deviceBound"


def test_a_device_receives_a_message_over_https_and_completes_it(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    assert as_device(hub, "GET", MESSAGES).status_code == 204
    send(
        hub, correlation_id="c", user_id="u", content_type="application/json", content_encoding="utf-8",
        expires_at=4_000_000_000.0, ack="full", properties={"plain": "a b", "k y": "é\n"}, body=b"\x00\xff",
    )  # fmt: skip
    answer = as_device(hub, "GET", f"{MESSAGES}?api-version=2019-10-01")
    assert (answer.status_code, answer.content) == (200, b"\x00\xff")
    headers = {key.lower(): value for key, value in answer.headers.items()}
    lock_token = headers.pop("etag").strip('"')
    assert abs(time.time() - _instant(headers.pop("iothub-enqueuedtime"))) < 60
    for name in ("date", "server", "content-length"):
        headers.pop(name)
    assert headers == {
        "content-type": "application/json",
        "contenttype": "application/json",
        "contentencoding": "utf-8",
        "iothub-messageid": "m1",
        "iothub-correlationid": "c",
        "iothub-userid": "u",
        "iothub-to": "/devices/d1/messages/deviceBound",
        "iothub-ack": "full",
        "iothub-expiry": "2096-10-02T07:06:40.0000000Z",
        "iothub-deliverycount": "0",
        "iothub-sequencenumber": "1",
        "iothub-app-plain": "a b",
        "iothub-app-k%20y": "%C3%A9%0A",
    }
    assert as_device(hub, "GET", MESSAGES).status_code == 204
    assert as_device(hub, "DELETE", f"{MESSAGES}/{lock_token}?api-version=2019-10-01").status_code == 204
    assert (waiting(hub), outcome(hub)) == (0, [("m1", "Success")])


def _instant(text: str) -> float:
    return time.mktime(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone


def received(hub: BackgroundHub, **settings: Any) -> tuple[str, str]:
    """The message id and lock token of the next message."""
    answer = as_device(hub, "GET", MESSAGES, **settings)
    assert answer.status_code == 200
    return answer.headers["iothub-messageid"], answer.headers["ETag"].strip('"')


def test_a_message_is_abandoned_comes_again_and_is_rejected(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    send(hub, "m1", ack="negative")
    send(hub, "m2")
    _, first = received(hub)
    # Other SDKs of the vendor spell it in lower case.
    assert as_device(hub, "POST", f"{MESSAGES.lower()}/{first}/abandon").status_code == 204
    gone = as_device(hub, "DELETE", f"{MESSAGES}/{first}")
    assert (gone.status_code, gone.reason) == (412, "Precondition Failed")
    assert gone.headers["iothub-errorcode"] == "DeviceMessageLockLost"
    message_id, second = received(hub)
    assert (message_id, second != first) == ("m1", True)
    assert as_device(hub, "DELETE", f"{MESSAGES}/{second}?reject&api-version=2019-10-01").status_code == 204
    assert outcome(hub) == [("m1", "Rejected")]
    assert received(hub)[0] == "m2"


def test_a_device_chooses_for_how_long_it_locks_a_message(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    send(hub)
    received(hub, headers={"IotHub-MessageLockTimeout": "1"})
    until(lambda: as_device(hub, "GET", MESSAGES).status_code == 200, "the lock to run out")
    for wrong in ("0", "301", "soon"):
        assert as_device(hub, "GET", MESSAGES, headers={"IotHub-MessageLockTimeout": wrong}).status_code == 400


def test_a_device_speaks_for_itself_only(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    hub.create_device("d2")
    hub.create_module("d1", "m1")
    send(hub)
    for method, path in (("GET", MESSAGES), ("POST", "/devices/d1/messages/events"), ("DELETE", f"{MESSAGES}/x")):
        for stranger in (IdentityId("d2"), IdentityId("d1", "m1")):
            answer = as_device(hub, method, path, identity_id=stranger)
            assert (answer.status_code, answer.headers["iothub-errorcode"]) == (401, "IotHubUnauthorizedAccess")
        assert as_service(hub, method, path).status_code == 401
    disabled = {"deviceId": "d1", "status": "disabled"}
    hub.call(lambda: hub.server.switchboard.hub.put_identity(D1, disabled, "*", time.time()))
    assert as_device(hub, "GET", MESSAGES).status_code == 401
    assert waiting(hub) == 1


def test_feedback_is_locked_abandoned_and_completed_by_a_service(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    assert as_service(hub, "GET", "/messages/serviceBound/feedback").status_code == 204
    send(hub, ack="full")
    send(hub, "m2", ack="full")
    answer = as_service(hub, "DELETE", "/devices/d1/commands")
    assert answer.json() == {"totalMessagesPurged": 2, "deviceId": "d1", "moduleId": None}
    batch = as_service(hub, "GET", "/messages/serviceBound/feedback")
    lock_token = batch.headers["ETag"].strip('"')
    assert as_service(hub, "POST", f"/messages/serviceBound/feedback/{lock_token}/abandon").status_code == 204
    assert outcome(hub) == [("m1", "Purged"), ("m2", "Purged")]
    gone = as_service(hub, "DELETE", f"/messages/serviceBound/feedback/{lock_token}")
    assert (gone.status_code, gone.headers["iothub-errorcode"]) == (412, "DeviceMessageLockLost")
    assert as_service(hub, "DELETE", "/devices/d9/commands").status_code == 404


BAD_MESSAGES: dict[str, tuple[Any, int]] = {
    "no document": ([], 400),
    "a body that is no base64": ({"body": "%"}, 400),
    "a body that is no text": ({"body": 1}, 400),
    "properties that are no texts": ({"properties": {"a": 1}}, 400),
    "an id that is no text": ({"messageId": 1}, 400),
    "a time that is none": ({"expiryTimeUtc": "soon"}, 400),
    "an ack that is none": ({"ack": "maybe"}, 400),
}


def test_a_document_that_is_no_message_is_refused(hub: BackgroundHub) -> None:
    hub.create_device("d1")
    for story, (document, status) in BAD_MESSAGES.items():
        answer = as_service(hub, "POST", "/simulator/devices/d1/messages", json=document)
        assert (story, answer.status_code) == (story, status)
    assert as_service(hub, "POST", "/simulator/devices/d9/messages", json={}).status_code == 404
    for _ in range(50):
        assert as_service(hub, "POST", "/simulator/devices/d1/messages", json={}).status_code == 201
    full = as_service(hub, "POST", "/simulator/devices/d1/messages", json={})
    assert (full.status_code, full.headers["iothub-errorcode"]) == (403, "DeviceMaximumQueueDepthExceeded")


def sim(hub: BackgroundHub, *arguments: str) -> tuple[int, str, str]:
    state = str(hub.ca_file.parent)
    done = subprocess.run(
        [sys.executable, "-m", "simulators.cli", *arguments, "--state", state],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_people_send_messages_and_see_what_became_of_them_at_a_terminal(
    hub: BackgroundHub, device: IoTHubDeviceClient
) -> None:
    arrived = threading.Event()
    heard: list[Any] = []

    def note(message: Any) -> None:
        heard.append((message.message_id, message.data, message.custom_properties, message.content_type))
        arrived.set()

    device.on_message_received = note
    code, out, err = sim(
        hub, "message", "send", "d1", '{"zoom": 2}', "--property", "kind=a=b", "--ack", "full", "--message-id", "m7",
        "--content-type", "application/json",
    )  # fmt: skip
    assert (code, out, err) == (0, "m7\n", "Queued for d1.\n")
    assert arrived.wait(DEADLINE_S)
    assert heard == [("m7", b'{"zoom": 2}', {"kind": "a=b"}, "application/json")]
    until(lambda: waiting(hub) == 0, "the PUBACK")
    code, out, _ = sim(hub, "message", "feedback", "--json")
    assert (code, [(r["originalMessageId"], r["statusCode"]) for r in json.loads(out)]) == (0, [("m7", "Success")])
    assert sim(hub, "message", "feedback")[:2] == (0, "")
    device.disconnect()
    code, out, _ = sim(hub, "message", "send", "d1", "later", "--json")
    assert (code, json.loads(out)["deviceId"]) == (0, "d1")
    assert sim(hub, "message", "purge", "d1")[:2] == (0, "1\n")
    assert sim(hub, "message", "send", "d1", "x", "--property", "p")[0] == 2
    assert sim(hub, "message", "send", "d9", "x")[0] == 6
    code, _, err = sim(hub, "message", "input", "d1", "m9", "in", "x")
    assert (code, "m9 is not registered" in err) == (6, True)
