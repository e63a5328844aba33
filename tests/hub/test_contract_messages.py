"""Messages from devices, as Event Hubs readers get them, and messages to devices."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, Queue
from typing import Any

import pytest
from azure.eventhub import EventData, EventHubConsumerClient
from azure.iot.device import Message

from tests.hub.conftest import DEADLINE_S, HubUnderTest, Thing, eventually

pytestmark = pytest.mark.wire
NextEvent = Callable[[], EventData]


@pytest.fixture
def next_event(hub_under_test: HubUnderTest, thing: Thing) -> Iterator[NextEvent]:
    """The telemetry of the thing, event by event, as it comes to the built-in endpoint from now on."""
    if not hub_under_test.event_hub_connection_string:
        pytest.skip("SLIPWAY_CONTRACT_EVENTHUB is not set")
    client = EventHubConsumerClient.from_connection_string(hub_under_test.event_hub_connection_string, "$Default")
    events: Queue[EventData] = Queue()

    def note(_context: Any, event: EventData) -> None:
        said = event.system_properties
        if (said[b"iothub-connection-device-id"], said[b"iothub-message-source"]) == (
            thing.device_id.encode(),
            b"Telemetry",
        ):
            events.put(event)

    options = {"starting_position": "-1"} if not hub_under_test.is_real else {"starting_position": "@latest"}
    thread = threading.Thread(target=client.receive, args=(note,), kwargs=options, daemon=True)
    thread.start()

    def get() -> EventData:
        try:
            return events.get(timeout=DEADLINE_S)
        except Empty:
            raise AssertionError(f"no event of {thing.device_id} within {DEADLINE_S:.0f} s") from None

    yield get
    client.close()
    thread.join(DEADLINE_S)


def test_telemetry_comes_to_the_built_in_endpoint_with_all_it_carries(connected, thing, next_event):
    message = Message('{"t": 21}', message_id="a/b c", content_encoding="utf-8", content_type="application/json")
    message.correlation_id = "c-1"
    message.custom_properties["k y"] = "v&=1/é"
    connected.send_message(message)
    event = next_event()
    assert event.body_as_json() == {"t": 21}
    assert (event.message_id, event.correlation_id, event.content_type) == ("a/b c", "c-1", "application/json")
    assert event.properties == {b"k y": "v&=1/é".encode()}
    assert b'"type":"sas"' in event.system_properties[b"iothub-connection-auth-method"].replace(b" ", b"")
    assert abs(event.enqueued_time.timestamp() - time.time()) < 300


def test_what_a_device_sends_stays_in_order(connected, next_event):
    for number in range(10):
        connected.send_message(str(number))
    assert [next_event().body_as_str() for _ in range(10)] == [str(number) for number in range(10)]


def test_a_device_hears_messages_with_their_properties(registry, thing, connected):
    heard: list[Message] = []
    connected.on_message_received = heard.append
    registry.send_c2d_message(
        thing.device_id, "wake up", {"messageId": "m-1", "correlationId": "c-1", "k y": "v&=1/é", "iothub-ack": "full"}
    )
    eventually(lambda: heard, "the message")
    (message,) = heard
    assert (message.data, message.message_id, message.correlation_id, message.ack) == (b"wake up", "m-1", "c-1", "full")
    assert message.custom_properties == {"k y": "v&=1/é"}


def test_messages_wait_for_a_device_that_is_away(registry, thing):
    for number in range(3):
        registry.send_c2d_message(thing.device_id, str(number))
    eventually(
        lambda: registry.get_device(thing.device_id).cloud_to_device_message_count == 3, "three messages in the queue"
    )
    client = thing.client()
    heard: list[Message] = []
    client.on_message_received = heard.append
    client.connect()
    eventually(lambda: len(heard) == 3, "three messages")
    assert [message.data for message in heard] == [b"0", b"1", b"2"]
    eventually(lambda: registry.get_device(thing.device_id).cloud_to_device_message_count == 0, "an empty queue")
    client.shutdown()


def test_a_message_to_nobody_is_not_sent(registry):
    with pytest.raises(Exception, match="C2D message send failure"):
        registry.send_c2d_message("contract-nobody", "hello")
