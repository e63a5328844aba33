"""A client on the AMQP side of a hub without sockets, through our own client half."""

from typing import Any

import pytest
from hub_worlds import HOST, Pipe, World

from simulators.iothub.core.access import make_token
from simulators.iothub.core.registry import IdentityId
from simulators.iothub.wire.amqp.client import AmqpClient, messages_in, of_kind
from simulators.iothub.wire.amqp.frames import Piece
from simulators.iothub.wire.amqp.performatives import (
    Detach,
)

EVENT_HUB = "iothub-ehub-hub-test"
FEEDBACK = "/messages/serviceBound/feedback"
DEVICEBOUND = f"amqps://{HOST}/messages/devicebound"


class Peer:
    """A client on a world's exchange."""

    def __init__(self, world: World, **limits: int) -> None:
        self.world = world
        self.client = AmqpClient(**limits)
        self.pipe = Pipe()
        self.dialogue = world.switchboard.amqp.open(self.pipe)

    def exchange(self) -> list[Piece]:
        """Carry what the client has written to the hub; returns what the hub says."""
        if data := self.client.data_to_send():
            self.world.switchboard.amqp.receive(self.dialogue, data)
        return self.hear()

    def hear(self) -> list[Piece]:
        heard: list[Piece] = []
        while True:
            self.world.switchboard.amqp.pump()
            data = self.pipe.take()
            if not data:
                return heard
            heard += self.client.receive(data)

    def start(self) -> "Peer":
        self.client.start()
        self.exchange()
        return self

    def claim(self, policy: str = "iothubowner", lifetime_s: int = 3600, audience: str | None = None) -> Any:
        """Put a token; returns the status of the answer."""
        self.client.attach_reader("$cbs", 10)
        writer = self.client.attach_writer("$cbs")
        token = self.token(policy, lifetime_s, HOST)
        self.client.put_token(writer, token, audience or f"https://{HOST}")
        ((_, answer),) = messages_in(self.exchange())
        return (answer.application_properties or {})["status-code"]

    def token(self, policy: str, lifetime_s: int, resource: str) -> str:
        key = self.world.hub.gatekeeper.policy(policy).keys[0]
        return make_token(key, resource, int(self.world.clock.now) + lifetime_s, policy)


@pytest.fixture
def world() -> World:
    world = World()
    # So that what a test sends is all that there is.
    world.hub.own_events.sources = frozenset()
    world.register("d1")
    return world


@pytest.fixture
def peer(world: World) -> Peer:
    peer = Peer(world).start()
    assert peer.claim() == 200
    return peer


def error_of(pieces: list[Piece], kind: type[Any] = Detach) -> str:
    (found,) = of_kind(pieces, kind)
    return str(found.error.condition)


def send_event(world: World, body: bytes, device: str = "d1", **properties: str) -> int:
    """Returns the partition that the event went to."""
    event = world.hub.accept_event(IdentityId(device), {}, properties, body, world.clock.now)
    world.switchboard.settle()
    return event.partition


def events_address(partition: int, group: str = "$Default") -> str:
    return f"amqps://{HOST}/{EVENT_HUB}/ConsumerGroups/{group}/Partitions/{partition}"


def bodies(pieces: list[Piece]) -> list[bytes]:
    return [b"".join(message.data) for _, message in messages_in(pieces)]
