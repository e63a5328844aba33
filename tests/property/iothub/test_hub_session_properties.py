"""One device and its hub through a network that fails: whole worlds, drawn step by step."""

import json
from typing import Any

from hub_worlds import Client, World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from simulators.iothub.core.registry import IdentityId
from simulators.iothub.wire.client import ClientState, Connected, Published, Received

DESIRED = "$iothub/twin/PATCH/properties/desired/#"
EVENTS = "devices/d1/messages/events/"


class DeviceWorld(RuleBasedStateMachine):
    """The device publishes and listens; the service patches; the connection dies at any byte."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.device = Client(self.world, self.world.register("d1"))
        self.sent: dict[int, bytes] = {}
        self.acknowledged: list[bytes] = []
        self.count = 0
        self.is_subscribed = False
        self.is_clean = False
        # Desired versions that the device must have heard of when all is quiet: those issued while it listened.
        self.owed: set[int] = set()
        self.heard: set[int] = set()

    @property
    def is_connected(self) -> bool:
        return self.device.session.state is ClientState.CONNECTED

    def note(self, events: list[Any]) -> None:
        for event in events:
            match event:
                case Published(packet_id):
                    self.acknowledged.append(self.sent[packet_id])
                case Received(topic, payload, _, _):
                    version = json.loads(payload)["$version"]
                    assert topic.endswith(f"?$version={version}")
                    self.heard.add(version)

    @precondition(lambda self: not self.is_connected)
    @rule(is_clean=st.sampled_from([False, False, False, True]))
    def connect(self, is_clean: bool) -> None:
        self.open_connection(is_clean)

    def open_connection(self, is_clean: bool) -> None:
        events = self.device.connect(clean_session=is_clean)
        assert isinstance(events[0], Connected)
        assert not (is_clean and events[0].is_session_present)
        # A clean session is as long as its connection: it takes nothing over and leaves nothing behind.
        if is_clean or self.is_clean:
            self.is_subscribed = False
            self.owed.clear()
        self.is_clean = is_clean
        self.note(events)

    @precondition(lambda self: self.is_connected)
    @rule()
    def subscribe(self) -> None:
        self.device.session.subscribe((DESIRED, 1))
        self.note(self.device.exchange())
        self.is_subscribed = True

    @precondition(lambda self: self.is_connected)
    @rule()
    def unsubscribe(self) -> None:
        self.device.session.unsubscribe(DESIRED)
        self.note(self.device.exchange())
        self.is_subscribed = False

    @precondition(lambda self: self.is_connected)
    @rule(is_lost_after=st.none() | st.integers(0, 60))
    def publish(self, is_lost_after: int | None) -> None:
        """Send a message; with a number, the connection dies after so many bytes of it, or before the answer."""
        self.count += 1
        body = f"message {self.count}".encode()
        packet_id = self.device.session.publish(EVENTS, body)
        assert packet_id is not None
        self.sent[packet_id] = body
        if is_lost_after is None:
            self.note(self.device.exchange())
            return
        self.device.deliver(self.device.session.data_to_send()[:is_lost_after])
        self.device.lose_connection()

    @rule(is_lost=st.booleans())
    def patch(self, is_lost: bool) -> None:
        """The service changes desired properties; the notification may be lost with the connection."""
        listening = self.is_connected and self.is_subscribed
        body = {"properties": {"desired": {"n": self.count}}}
        document = self.world.hub.patch_twin(IdentityId("d1"), body, None, self.world.clock.now)
        self.world.switchboard.settle()
        if listening:
            self.owed.add(document["properties"]["desired"]["$version"])
        if is_lost and self.is_connected:
            self.device.lose_connection()
        elif self.is_connected:
            self.note(self.device.exchange())

    @precondition(lambda self: self.is_connected)
    @rule()
    def lose_connection(self) -> None:
        self.device.lose_connection()

    @precondition(lambda self: self.is_connected)
    @rule()
    def leave(self) -> None:
        self.device.session.disconnect()
        self.device.exchange()

    @precondition(lambda self: self.is_connected)
    @rule()
    def be_cut_off(self) -> None:
        self.world.switchboard.cut("d1")
        self.device.session.connection_lost()

    @invariant()
    def the_hub_knows_who_is_connected(self) -> None:
        identity = self.world.hub.registry.get(IdentityId("d1"))
        assert identity.is_connected == self.is_connected
        assert self.world.hub.service_statistics() == {"connectedDeviceCount": int(self.is_connected)}

    @invariant()
    def what_was_acknowledged_is_in_the_log(self) -> None:
        stored = set(self.world.events())
        assert set(self.acknowledged) <= stored
        sequences = [event.sequence for event in self.world.hub.events.read(0, 10_000)]
        assert sequences == list(range(1, len(sequences) + 1))

    @invariant()
    def who_listens_is_known_across_connections(self) -> None:
        listening = self.is_connected and self.is_subscribed
        assert self.world.hub.hears(IdentityId("d1"), "desiredPatches") == listening

    def teardown(self) -> None:
        """When the network heals, everything that was owed arrives."""
        if not self.is_connected:
            self.open_connection(is_clean=False)
        assert self.owed <= self.heard
        assert self.device.session.in_flight_count == 0
        # A clean session drops what was unacknowledged, as its user asked; all else is stored.
        assert set(self.acknowledged) <= set(self.world.events())


TestDeviceWorld = DeviceWorld.TestCase
TestDeviceWorld.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
