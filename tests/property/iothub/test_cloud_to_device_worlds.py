"""Generated lives of messages to a device: by MQTT with and without PUBACKs, by HTTPS, over time and restarts."""

import json

import pytest
from hub_worlds import Client, World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from simulators.iothub.core.cloud_to_device import QUEUE_MESSAGES_MAX, CloudMessage
from simulators.iothub.core.locking_queue import DELIVERIES_MAX
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.errors import ServiceError
from simulators.iothub.wire.client import ClientState, Received

D1 = IdentityId("d1")


class Lives(RuleBasedStateMachine):
    """Every message asks for full feedback, so the hub has to account for each of them once."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.client = Client(self.world, self.world.register("d1"))
        self.sent: dict[str, float] = {}
        self.ended: dict[str, str] = {}
        self.completed: set[str] = set()
        self.deliveries: dict[str, int] = {}
        self.locked: dict[str, tuple[str, float]] = {}

    @initialize(qos=st.integers(0, 1))
    def subscribe(self, qos: int) -> None:
        self.qos = qos
        self.client.connect()
        self.client.session.subscribe(("devices/d1/messages/devicebound/#", qos))
        self.client.exchange()
        self.client.lose_connection()

    @property
    def is_connected(self) -> bool:
        return self.client.session.state is ClientState.CONNECTED

    def note(self, payload: bytes) -> None:
        name = payload.decode()
        assert name not in self.completed, "a message came again after it was complete"
        self.deliveries[name] = self.deliveries.get(name, 0) + 1
        assert self.deliveries[name] <= DELIVERIES_MAX

    @rule(lifetime_s=st.sampled_from([0, 30, 100, 4000]))
    def send(self, lifetime_s: int) -> None:
        name = f"m{len(self.sent)}"
        waiting = self.world.hub.cloud_to_device.count("d1")
        message = CloudMessage(name, expires_at=self.world.clock.now + lifetime_s, ack="full", body=name.encode())
        if waiting == QUEUE_MESSAGES_MAX:
            with pytest.raises(ServiceError, match="50 messages wait"):
                self.world.hub.send_to_device("d1", message, self.world.clock.now)
            return
        self.world.hub.send_to_device("d1", message, self.world.clock.now)
        self.sent[name] = self.world.clock.now + lifetime_s
        self.world.switchboard.settle()

    @precondition(lambda self: not self.is_connected)
    @rule()
    def connect_and_answer(self) -> None:
        for event in self.client.connect():
            self.hear(event)

    @precondition(lambda self: self.is_connected)
    @rule()
    def answer(self) -> None:
        for event in self.client.exchange():
            self.hear(event)

    def hear(self, event: object) -> None:
        if isinstance(event, Received):
            self.note(event.payload)
            # The PUBACK has arrived by the end of the exchange.
            self.completed.add(event.payload.decode())

    @precondition(lambda self: self.is_connected)
    @rule()
    def hear_and_go_without_an_answer(self) -> None:
        for event in self.client.session.receive(self.client.pipe.take()):
            if isinstance(event, Received):
                self.note(event.payload)
                if event.qos == 0:
                    self.completed.add(event.payload.decode())
        self.client.lose_connection()

    @rule(lock_s=st.sampled_from([1, 60, 300]))
    def receive_by_https(self, lock_s: int) -> None:
        now = self.world.clock.now
        delivery = self.world.hub.cloud_to_device.receive("d1", now, lock_s=lock_s)
        if delivery is not None:
            assert delivery.expires_at > now
            self.note(delivery.item.body)
            self.locked[delivery.lock_token] = (delivery.item.message_id, now + lock_s)

    @precondition(lambda self: self.locked)
    @rule(how=st.sampled_from(["complete", "abandon", "reject"]), data=st.data())
    def settle_by_https(self, how: str, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.locked)))
        name, until = self.locked.pop(token)
        now = self.world.clock.now
        act = getattr(self.world.hub.cloud_to_device, how)
        if until <= now or name in self.ended_now():
            with pytest.raises(ServiceError):
                act("d1", token, now)
            return
        act("d1", token, now)
        if how == "complete":
            self.completed.add(name)
        self.world.hub.offer_messages("d1", now)
        self.world.switchboard.settle()

    @rule(seconds=st.sampled_from([0.5, 10, 61, 301]))
    def time_passes(self, seconds: float) -> None:
        self.world.clock.now += seconds
        self.world.switchboard.tick()

    @rule()
    def purge(self) -> None:
        self.world.hub.cloud_to_device.purge("d1", self.world.clock.now)

    @invariant()
    def every_message_is_waiting_or_has_ended_once(self) -> None:
        ended = self.ended_now()
        assert set(ended) <= set(self.sent)
        assert len(self.sent) - len(ended) == self.world.hub.cloud_to_device.count("d1")
        assert self.world.hub.registry.get(D1).message_count == self.world.hub.cloud_to_device.count("d1")
        assert {name for name in self.completed if ended.get(name) not in ("Success", "Purged")} == set()
        for name, outcome in ended.items():
            if outcome == "DeliveryCountExceeded":
                assert self.deliveries.get(name, 0) <= DELIVERIES_MAX
            if outcome == "Expired":
                assert self.sent[name] <= self.world.clock.now

    def ended_now(self) -> dict[str, str]:
        while batch := self.world.hub.feedback.receive(self.world.clock.now):
            for record in json.loads(batch.body):
                assert record["originalMessageId"] not in self.ended, "a message ended twice"
                self.ended[record["originalMessageId"]] = record["statusCode"]
            self.world.hub.feedback.complete(batch.lock_token)
        return self.ended


Lives.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestLives = Lives.TestCase
