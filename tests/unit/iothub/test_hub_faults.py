"""Planted faults: whom they strike and how often, and what they do to a conversation."""

import json
from typing import Any

import pytest
from hub_worlds import NOON, Client, World
from hypothesis import given
from hypothesis import strategies as st

from simulators.iothub.core.cloud_to_device import CloudMessage
from simulators.iothub.core.faults import KINDS, Faults, Point
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import Fault, ServiceError
from simulators.iothub.server import switchboard
from simulators.iothub.wire.client import Connected, Published, Received, Refused
from simulators.iothub.wire.mqtt import ConnackCode

D1, D2, MODULE = IdentityId("d1"), IdentityId("d2"), IdentityId("d1", "m")
EVENTS = "devices/d1/messages/events/"
TWIN = "$iothub/twin/res/#"
DESIRED = "$iothub/twin/PATCH/properties/desired/#"
BOUND = "devices/d1/messages/devicebound/#"


class Garden:
    """Faults with luck that the test gives."""

    def __init__(self, *luck: float) -> None:
        self.luck = list(luck)
        self.lags: list[float] = []
        self._ids = iter(range(1, 10_000))
        self.faults = Faults(lambda: self.luck.pop(0), lambda: f"f{next(self._ids)}", self.lags.append)

    def plant(self, kind: str, **fields: Any) -> str:
        return self.faults.plant({"kind": kind, **fields}, NOON).fault_id

    def strikes(self, point: Point, identity_id: IdentityId | None, times: int, now: float = NOON) -> list[bool]:
        return [self.faults.strike(point, identity_id, now) is not None for _ in range(times)]


def test_a_fault_strikes_once_when_nothing_else_is_said() -> None:
    garden = Garden()
    garden.plant("drop")
    assert garden.strikes(Point.PUBLISH, D1, 2) == [True, False]
    assert garden.faults.documents(NOON) == []


def test_a_fault_strikes_at_its_own_point_only() -> None:
    garden = Garden()
    garden.plant("drop", count=10)
    others = [point for point in Point if point is not Point.PUBLISH]
    assert [point for point in others if garden.faults.strike(point, D1, NOON)] == []


WHOM = {
    "for all": ({}, [D1, D2, MODULE, None]),
    "for a device and its modules": ({"deviceId": "d1"}, [D1, MODULE]),
    "for one module": ({"deviceId": "d1", "moduleId": "m"}, [MODULE]),
}


@pytest.mark.parametrize("story", WHOM)
def test_a_fault_strikes_whom_it_is_for(story: str) -> None:
    fields, struck = WHOM[story]
    garden = Garden()
    garden.plant("error", count=10, **fields)
    assert [who for who in (D1, D2, MODULE, None) if garden.faults.strike(Point.REQUEST, who, NOON)] == struck


def test_a_duration_ends_a_fault_to_the_instant() -> None:
    garden = Garden()
    garden.plant("drop", durationInSeconds=10)
    assert garden.strikes(Point.PUBLISH, D1, 3, NOON + 9.99) == [True, True, True]
    assert garden.strikes(Point.PUBLISH, D1, 1, NOON + 10) == [False]
    assert garden.faults.documents(NOON + 10) == []


def test_a_fault_ends_with_whichever_is_first_of_count_and_duration() -> None:
    garden = Garden()
    garden.plant("drop", durationInSeconds=10, count=2)
    assert garden.strikes(Point.PUBLISH, D1, 3) == [True, True, False]


def test_a_probability_is_the_share_of_strikes() -> None:
    garden = Garden(0.0, 0.24, 0.25, 0.99)
    garden.plant("drop", probability=0.25, durationInSeconds=10)
    assert garden.strikes(Point.PUBLISH, D1, 4) == [True, True, False, False]


def test_where_luck_spares_one_fault_the_next_may_strike() -> None:
    garden = Garden(0.9)
    garden.plant("kill", probability=0.5)
    second = garden.plant("expire-token")
    fault = garden.faults.strike(Point.CONNECTION, D1, NOON)
    assert fault is not None
    assert fault.fault_id == second


def test_what_is_planted_can_be_listed_and_cleared() -> None:
    garden = Garden()
    first = garden.plant("delay", deviceId="d1", value=2.5, durationInSeconds=10)
    second = garden.plant("drop", count=3)
    garden.strikes(Point.PUBLISH, D1, 1)
    assert garden.faults.documents(NOON + 4) == [
        {
            "id": first, "kind": "delay", "deviceId": "d1", "moduleId": None, "countLeft": None, "secondsLeft": 6.0,
            "probability": 1.0, "value": 2.5, "struck": 0,
        },
        {
            "id": second, "kind": "drop", "deviceId": None, "moduleId": None, "countLeft": 2, "secondsLeft": None,
            "probability": 1.0, "value": None, "struck": 1,
        },
    ]  # fmt: skip
    assert garden.faults.clear(first) == 1
    with pytest.raises(ServiceError) as gone:
        garden.faults.clear(first)
    assert gone.value.fault is Fault.FaultNotFound
    assert (garden.faults.clear(), garden.faults.planted) == (1, {})


def test_queries_lag_as_long_as_the_fault_is_there_and_by_the_longest() -> None:
    garden = Garden()
    garden.plant("lag", value=7)
    short = garden.plant("lag", value=3, durationInSeconds=10)
    assert garden.lags[-1] == 7
    garden.faults.due(NOON + 10)
    assert (garden.lags[-1], [d["id"] == short for d in garden.faults.documents(NOON + 10)]) == (7, [False])
    garden.faults.clear()
    assert garden.lags[-1] == 0


REFUSED = {
    "no object": [],
    "no kind": {},
    "a kind that is none": {"kind": "flood"},
    "a kind that is no text": {"kind": ["drop"]},
    "half a time": {"kind": "drop", "count": 1.5},
    "no time at all": {"kind": "drop", "count": 0},
    "true is no number": {"kind": "drop", "count": True},
    "more than certain": {"kind": "drop", "probability": 1.1},
    "never": {"kind": "drop", "probability": 0},
    "for longer than a day": {"kind": "drop", "durationInSeconds": 86_401},
    "a number that is none": {"kind": "drop", "durationInSeconds": float("nan")},
    "a value where none is wanted": {"kind": "drop", "value": 1},
    "a status that no SDK expects": {"kind": "error", "value": 418},
    "a CONNACK code that accepts": {"kind": "refuse", "value": 0},
    "half a CONNACK code": {"kind": "refuse", "value": 2.5},
    "a module without its device": {"kind": "drop", "moduleId": "m"},
    "a device that is no text": {"kind": "drop", "deviceId": 1},
    "a lag for one device": {"kind": "lag", "deviceId": "d1"},
    "a lag now and then": {"kind": "lag", "probability": 0.5},
}


@pytest.mark.parametrize("story", REFUSED)
def test_what_is_no_fault_is_refused(story: str) -> None:
    garden = Garden()
    with pytest.raises(ServiceError) as refused:
        garden.faults.plant(REFUSED[story], NOON)
    assert (refused.value.fault, garden.faults.planted) == (Fault.ArgumentInvalid, {})


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


names = st.sampled_from(["deviceId", "moduleId", "count", "durationInSeconds", "probability", "value"])


@given(st.sampled_from(list(KINDS)), st.dictionaries(names, anything | st.floats(0, 10)))
def test_any_document_is_a_fault_or_refused(kind: str, document: dict[str, Any]) -> None:
    garden = Garden()
    try:
        planted = garden.faults.plant({**document, "kind": kind}, NOON)
    except ServiceError as err:
        if err.fault is not Fault.ArgumentInvalid:
            raise
        return
    json.dumps(planted.document(NOON), allow_nan=False)


# --- in a conversation ------------------------------------------------------------------------------------------------


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def client(world: World) -> Client:
    client = Client(world, world.register("d1"))
    client.connect()
    return client


def plant(world: World, kind: str, **fields: Any) -> dict[str, Any]:
    return world.switchboard.plant_fault({"kind": kind, **fields})


def after(world: World, client: Client, seconds: float) -> list[Any]:
    world.clock.now += seconds
    world.switchboard.tick()
    return client.exchange()


def subscribe(client: Client, topic_filter: str) -> None:
    client.session.subscribe((topic_filter, 1))
    client.exchange()


def test_a_refused_device_gets_in_the_next_time(world: World) -> None:
    client = Client(world, world.register("d1"))
    plant(world, "refuse", value=5)
    assert client.connect() == [Refused(ConnackCode.NOT_AUTHORIZED)]
    assert client.connect() == [Connected(is_session_present=False)]


@pytest.mark.parametrize("kind", ["kill", "expire-token"])
def test_an_open_connection_ends_at_once_and_a_second_one_stays(world: World, client: Client, kind: str) -> None:
    other = Client(world, world.register("d2"))
    other.connect()
    assert plant(world, kind, deviceId="d1")["struck"] == 1
    assert (client.pipe.is_closed, other.pipe.is_closed) == (True, False)
    assert world.hub.registry.get(D1).connection_state == "Disconnected"


def test_a_fault_for_a_device_that_is_away_ends_its_next_connection(world: World, client: Client) -> None:
    client.lose_connection()
    assert plant(world, "kill", deviceId="d1")["struck"] == 0
    client.connect()
    client.session.ping()
    assert (client.exchange(), client.pipe.is_closed) == ([], True)


def test_a_dropped_message_is_as_if_it_had_never_been_sent(world: World, client: Client) -> None:
    plant(world, "drop")
    client.session.publish(EVENTS, b"1")
    assert (client.exchange(), world.events()) == ([], [])
    client.lose_connection()
    client.connect()
    assert world.events() == [b"1"]


def test_a_message_whose_acknowledgement_is_withheld_is_there_twice_after_the_client_came_back(
    world: World, client: Client
) -> None:
    plant(world, "withhold-puback")
    client.session.publish(EVENTS, b"1")
    assert (client.exchange(), world.events()) == ([], [b"1"])
    client.lose_connection()
    assert Published(1) in client.connect()
    assert world.events() == [b"1", b"1"]


def test_a_message_of_qos_0_has_no_acknowledgement_to_withhold(world: World, client: Client) -> None:
    plant(world, "withhold-puback")
    client.session.publish(EVENTS, b"1", qos=0)
    client.exchange()
    assert [document["struck"] for document in world.hub.faults.documents(world.clock.now)] == [0]


def test_a_late_acknowledgement_comes_when_it_is_due_and_not_before(world: World, client: Client) -> None:
    plant(world, "delay", value=2)
    packet_id = client.session.publish(EVENTS, b"1")
    assert (client.exchange(), world.events()) == ([], [b"1"])
    assert after(world, client, 1.9) == []
    assert after(world, client, 0.1) == [Published(packet_id)]


def test_a_late_answer_to_a_client_that_has_gone_is_forgotten(world: World, client: Client) -> None:
    plant(world, "delay", value=2)
    client.session.publish(EVENTS, b"1")
    client.exchange()
    client.lose_connection()
    assert after(world, client, 3) == []


def test_a_connection_for_which_too_much_waits_is_closed(
    world: World, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(switchboard, "LATE_BYTES_MAX", 3 * 4)
    plant(world, "delay", value=2, durationInSeconds=60)
    for number in range(3):
        client.session.publish(EVENTS, b"%d" % number)
    assert (client.exchange(), client.pipe.is_closed) == ([], False)
    client.session.publish(EVENTS, b"3")
    assert (client.exchange(), client.pipe.is_closed) == ([], True)
    # What has left makes room.
    world.clock.now += 3
    world.switchboard.tick()
    other = Client(world, world.register("d2"))
    other.connect()
    other.session.publish("devices/d2/messages/events/", b"4")
    assert (other.exchange(), other.pipe.is_closed) == ([], False)


def test_a_late_twin_answer_is_the_answer(world: World, client: Client) -> None:
    subscribe(client, TWIN)
    plant(world, "delay", value=2)
    client.session.publish("$iothub/twin/GET/?$rid=1", b"", qos=0)
    assert client.exchange() == []
    (answer,) = after(world, client, 2)
    assert answer.topic == "$iothub/twin/res/200/?$rid=1"


def message(body: bytes) -> CloudMessage:
    return CloudMessage("m", None, None, "", None, None, None, "none", {}, body)


def send(world: World, body: bytes) -> None:
    world.hub.send_to_device("d1", message(body), world.clock.now)
    world.switchboard.settle()


def test_a_duplicated_message_arrives_twice_and_is_complete(world: World, client: Client) -> None:
    subscribe(client, BOUND)
    plant(world, "duplicate-message")
    send(world, b"1")
    heard = client.exchange()
    assert [(item.payload, item.is_duplicate) for item in heard if isinstance(item, Received)] == [
        (b"1", False),
        (b"1", True),
    ]
    assert world.hub.registry.get(D1).message_count == 0


def test_a_lost_message_comes_when_the_device_comes_back(world: World, client: Client) -> None:
    subscribe(client, BOUND)
    plant(world, "lose-message")
    send(world, b"1")
    assert client.exchange() == []
    client.lose_connection()
    assert [item.payload for item in client.connect() if isinstance(item, Received)] == [b"1"]


def test_a_lost_desired_patch_never_comes_and_the_twin_has_it(world: World, client: Client) -> None:
    subscribe(client, DESIRED)
    plant(world, "lose-desired")
    world.hub.patch_twin(D1, {"properties": {"desired": {"a": 1}}}, None, world.clock.now)
    world.switchboard.settle()
    assert client.exchange() == []
    client.lose_connection()
    assert client.connect() == [Connected(is_session_present=True)]
    assert json.loads(world.hub.device_twin(D1, world.clock.now))["desired"]["a"] == 1


def test_queries_see_a_change_when_the_lag_is_over(world: World, client: Client) -> None:
    plant(world, "lag", value=5)
    world.hub.patch_twin(D1, {"tags": {"a": 1}}, None, world.clock.now)

    def seen() -> int:
        return len(world.hub.query("SELECT * FROM devices WHERE tags.a = 1", None, 10, world.clock.now).rows)

    assert seen() == 0
    world.clock.now += 5
    assert seen() == 1


ASKED_FOR = {
    "KillTcp": ("KillTcp", "3", 3.0),
    "ShutDownMqtt": ("ShutDownMqtt", "1", 1.0),
    "at once": ("KillTcp", "0", 0.0),
    "after what is no number": ("KillTcp", "soon", 0.0),
}


@pytest.mark.parametrize("story", ASKED_FOR)
def test_a_message_can_end_its_own_connection(world: World, client: Client, story: str) -> None:
    operation, delay, delay_s = ASKED_FOR[story]
    bag = (
        f"AzIoTHub_FaultOperationType={operation}&AzIoTHub_FaultOperationCloseReason=boom"
        f"&AzIoTHub_FaultOperationDelayInSecs={delay}"
    )
    packet_id = client.session.publish(f"{EVENTS}{bag}", b"")
    assert client.exchange() == [Published(packet_id)]
    if delay_s:
        after(world, client, delay_s - 0.01)
        assert not client.pipe.is_closed
    after(world, client, 0.01)
    assert client.pipe.is_closed


def test_operations_of_other_protocols_mean_nothing(world: World, client: Client) -> None:
    client.session.publish(f"{EVENTS}AzIoTHub_FaultOperationType=KillAmqpConnection", b"")
    client.exchange()
    after(world, client, 100)
    assert not client.pipe.is_closed


def test_what_a_message_asked_for_spares_the_next_connection(world: World, client: Client) -> None:
    client.session.publish(f"{EVENTS}AzIoTHub_FaultOperationType=KillTcp&AzIoTHub_FaultOperationDelayInSecs=5", b"")
    client.exchange()
    client.lose_connection()
    client.connect()
    after(world, client, 10)
    assert not client.pipe.is_closed
