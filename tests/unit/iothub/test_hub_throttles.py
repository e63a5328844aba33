"""Tiers: the service's own table of limits, bursts and queues, the quota of a day, and what devices notice of them."""

import re
from typing import Any

import pytest
from hub_worlds import NOON, Client, World
from hypothesis import given
from hypothesis import strategies as st

from simulators.cli.hub import hub as hub_command
from simulators.iothub.core.throttles import BURST_S, LIMITS, QUEUE_S_MAX, TIERS, Bucket, Operation, Throttles
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server.rest_api.api import ROUTES
from simulators.iothub.server.rest_api.throttling import OPERATIONS
from simulators.iothub.wire.client import Connected, Published, Received, Refused
from simulators.iothub.wire.mqtt import ConnackCode

# https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-quotas-throttling#basic-and-standard-tier-operations, of
# February 2023; "/u" is for each unit.
REFERENCE = """
| identity registry | 100/min/u | 100/min/u | 5000/min/u |
| new connections | max(100/s, 12/s/u) | 120/s/u | 6000/s/u |
| device-to-cloud sends | max(100/s, 12/s/u) | 120/s/u | 6000/s/u |
| cloud-to-device sends | 100/min/u | 100/min/u | 5000/min/u |
| cloud-to-device receives | 1000/min/u | 1000/min/u | 50000/min/u |
| file upload initiations | 100/min/u | 100/min/u | 5000/min/u |
| direct methods | 160 KB/s/u | 480 KB/s/u | 24576 KB/s/u |
| queries | 20/min/u | 20/min/u | 1000/min/u |
| twin reads | 100/s | max(100/s, 10/s/u) | 500/s/u |
| twin updates | 50/s | max(50/s, 5/s/u) | 250/s/u |
| jobs | 100/min/u | 100/min/u | 5000/min/u |
| jobs device operations | 10/s | max(10/s, 1/s/u) | 50/s/u |
| configurations | 20/min/u | 20/min/u | 20/min/u |
"""


def per_second(text: str, units: int) -> float:
    """What a cell of the reference allows."""
    rates = []
    for count, kilobytes, period, per_unit in re.findall(r"(\d+)( KB)?/(s|min)(/u)?", text):
        rate = int(count) / (4 if kilobytes else 1) / (60 if period == "min" else 1)
        rates.append(rate * units if per_unit else rate)
    return max(rates)


ROWS = {cells[0]: cells[1:] for line in REFERENCE.split("\n") if (cells := [c.strip() for c in line.split("|")[1:-1]])}


@pytest.mark.parametrize("operation", Operation, ids=lambda operation: operation.value)
@pytest.mark.parametrize("units", [1, 2, 9, 10])
def test_the_limits_are_those_of_the_reference(operation: Operation, units: int) -> None:
    told = [per_second(cell, units) for cell in ROWS[operation.value]]
    assert [limit.per_second(units) for limit in LIMITS[operation]] == pytest.approx(told)


def test_every_row_of_the_reference_is_kept() -> None:
    assert set(ROWS) == {operation.value for operation in Operation}


def test_the_tiers_are_those_that_one_can_have() -> None:
    told = {name: (tier.column, tier.messages_a_day, tier.meter_bytes, tier.jobs_max) for name, tier in TIERS.items()}
    assert told == {
        "F1": (0, 8_000, 512, 1),
        "S1": (0, 400_000, 4096, 1),
        "S2": (1, 6_000_000, 4096, 5),
        "S3": (2, 300_000_000, 4096, 10),
    }
    (choice,) = [option.type for option in hub_command.params if option.name == "tier"]
    assert list(choice.choices) == list(TIERS)


@pytest.mark.parametrize(("tier", "units"), [("F1", 2), ("S1", 0), ("S1", 201), ("S3", 11), ("B1", 1)])
def test_a_hub_that_nobody_can_have_is_refused(tier: str, units: int) -> None:
    with pytest.raises(ValueError, match=tier):
        Throttles.of(tier, units)


def test_every_limited_route_is_there() -> None:
    routes = {(route.method, route.path) for route in ROUTES}
    assert set(OPERATIONS) - routes == set()


def test_a_minutes_worth_passes_then_requests_wait_and_then_they_are_refused() -> None:
    bucket = Bucket(20 / 60)
    assert [bucket.take(1, NOON) for _ in range(25)] == [0.0] * 20 + [3.0, 6.0, 9.0, None, None]
    assert (bucket.taken, bucket.delayed, bucket.refused) == (23, 3, 2)
    # Who waited is through; a place in the queue is free again.
    assert bucket.take(1, NOON + 3) == 9.0
    assert bucket.take(1, NOON + 12) == 3.0


def test_after_a_minute_of_quiet_all_is_as_at_first() -> None:
    bucket = Bucket(1)
    while bucket.take(1, NOON) is not None:
        pass
    assert [bucket.take(1, NOON + 130) for _ in range(61)] == [0.0] * 60 + [1.0]


def test_a_clock_that_is_set_back_does_not_close_the_hub() -> None:
    bucket = Bucket(1)
    while bucket.take(1, NOON + 86_400) is not None:
        pass
    assert bucket.take(1, NOON) == 1.0
    assert bucket.take(9, NOON) == 10.0
    assert bucket.take(1, NOON) is None


steps = st.tuples(st.floats(0, 20), st.integers(1, 30))


@given(st.floats(0.1, 100), st.lists(steps, min_size=1, max_size=60))
def test_no_more_is_handled_than_burst_and_rate_allow(rate: float, history: list[tuple[float, int]]) -> None:
    bucket, now, handled = Bucket(rate), NOON, []
    for pause_s, count in history:
        now += pause_s
        for _ in range(count):
            wait_s = bucket.take(1, now)
            if wait_s is not None:
                assert 0 <= wait_s <= QUEUE_S_MAX
                handled.append(now + wait_s)
    assert handled == sorted(handled)
    for first, begun_at in enumerate(handled):
        for last in range(first, len(handled)):
            span_s = handled[last] - begun_at
            # One more, since a hub that was quiet takes a single operation of whatever size.
            assert last - first + 1 <= rate * (BURST_S + span_s) + 1 + 1e-3


def test_the_quota_is_counted_in_meters_and_begins_anew_with_the_day() -> None:
    throttles = Throttles.of("F1", 1)
    midnight = NOON - NOON % 86_400 + 86_400
    for size in (0, 512, 513, 1024):
        throttles.meter(size, midnight - 1)
    assert throttles.document(midnight - 1)["dailyMessages"] == {"limit": 8000, "used": 6, "meterBytes": 512}
    throttles.meter(512 * 7994, midnight - 1)
    with pytest.raises(ServiceError) as spent:
        throttles.meter(1, midnight - 1)
    assert spent.value.fault is Fault.IotHubQuotaExceeded
    throttles.meter(1, midnight)
    assert throttles.document(midnight)["dailyMessages"]["used"] == 1


# --- what a device notices --------------------------------------------------------------------------------------------

EVENTS = "devices/d1/messages/events/"
TWIN = "$iothub/twin/res/#"


@pytest.fixture
def world() -> World:
    world = World()
    world.hub.impose(Throttles.of("S1", 1))
    return world


@pytest.fixture
def client(world: World) -> Client:
    client = Client(world, world.register("d1"))
    assert client.connect() == [Connected(is_session_present=False)]
    return client


def spend(world: World, operation: Operation, times: int) -> None:
    for _ in range(times):
        assert world.hub.throttles
        world.hub.throttles.has_room(operation, world.clock.now)


def after(world: World, client: Client, seconds: float) -> list[Any]:
    world.clock.now += seconds
    world.switchboard.tick()
    return client.exchange()


def test_an_acknowledgement_waits_for_its_turn_and_the_message_does_not(world: World, client: Client) -> None:
    spend(world, Operation.EVENT, 6000 + 99)
    packet_id = client.session.publish(EVENTS, b"1")
    assert (client.exchange(), world.events()) == ([], [b"1"])
    assert after(world, client, 0.9) == []
    assert after(world, client, 0.11) == [Published(packet_id)]


def test_a_device_that_goes_on_sending_is_disconnected(world: World, client: Client) -> None:
    spend(world, Operation.EVENT, 6000 + 1000)
    client.session.publish(EVENTS, b"1")
    assert (client.exchange(), client.pipe.is_closed, world.events()) == ([], True, [])
    world.clock.now += 1
    assert Published(1) not in client.connect()
    assert world.events() == [b"1"]


def twin_answer(client: Client, topic: str, body: bytes) -> list[str]:
    client.session.publish(topic, body, qos=0)
    return [item.topic for item in client.exchange() if isinstance(item, Received)]


REQUESTS = {
    "a read": (Operation.TWIN_READ, 7000, "$iothub/twin/GET/?$rid=7"),
    "an update": (Operation.TWIN_UPDATE, 3500, "$iothub/twin/PATCH/properties/reported/?$rid=7"),
}


@pytest.mark.parametrize("story", REQUESTS)
def test_a_twin_request_beyond_the_queue_is_answered_with_429(world: World, client: Client, story: str) -> None:
    operation, most, topic = REQUESTS[story]
    client.session.subscribe((TWIN, 0))
    client.exchange()
    spend(world, operation, most)
    assert twin_answer(client, topic, b'{"a":1}') == ["$iothub/twin/res/429/?$rid=7"]
    assert world.hub.twin(client.identity_id).reported.version == 1


def test_the_twin_is_answered_late_before_it_is_refused(world: World, client: Client) -> None:
    client.session.subscribe((TWIN, 0))
    client.exchange()
    spend(world, Operation.TWIN_READ, 6000 + 199)
    assert twin_answer(client, "$iothub/twin/GET/?$rid=7", b"") == []
    assert [item.topic for item in after(world, client, 2.01)] == ["$iothub/twin/res/200/?$rid=7"]


def test_too_many_new_connections_are_refused_until_there_is_room(world: World, client: Client) -> None:
    spend(world, Operation.CONNECT, 8000)
    other = Client(world, world.register("d2"))
    assert other.connect() == [Refused(ConnackCode.SERVER_UNAVAILABLE)]
    world.clock.now += 1
    assert other.connect() == [Connected(is_session_present=False)]


def test_a_free_hub_takes_eight_thousand_messages_a_day(world: World, client: Client) -> None:
    world.hub.impose(Throttles.of("F1", 1))
    assert world.hub.throttles
    world.hub.throttles.meter(512 * 7999, world.clock.now)
    client.session.publish(EVENTS, b"1")
    assert [type(item) for item in client.exchange()] == [Published]
    client.session.publish(EVENTS, b"2")
    assert (client.exchange(), client.pipe.is_closed, world.events()) == ([], True, [b"1"])


def test_a_tier_says_how_many_jobs_run_at_once(world: World) -> None:
    now = world.clock.now
    body = {
        "jobId": "j1",
        "type": "scheduleUpdateTwin",
        "updateTwin": {"tags": {"a": 1}},
        "queryCondition": "deviceId IN ['d1']",
        "startTime": "2023-11-15T00:00:00Z",
    }
    world.hub.jobs.create("j1", body, now)
    with pytest.raises(ServiceError) as second:
        world.hub.jobs.create("j2", {**body, "jobId": "j2"}, now)
    assert second.value.fault is Fault.ThrottlingMaxActiveJobCountExceeded


def test_a_job_does_a_minutes_worth_of_devices_and_then_ten_a_second(world: World) -> None:
    for number in range(720):
        world.register(f"d{number}")
    body = {
        "jobId": "j1",
        "type": "scheduleUpdateTwin",
        "updateTwin": {"tags": {"a": 1}},
        "queryCondition": "*",
        "startTime": "",
    }
    world.hub.jobs.create("j1", body, world.clock.now)
    done = []
    for _ in range(4):
        # As many slices as there may be in one instant.
        while world.hub.advance(world.clock.now):
            pass
        done.append(world.hub.jobs.get("j1").count("completed"))
        world.clock.now += 5
    assert done == [600, 650, 700, 720]
