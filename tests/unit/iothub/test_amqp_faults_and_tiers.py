"""What faults and tiers do to messages that come for devices over AMQP."""

import pytest
from amqp_peers import DEVICEBOUND, Peer, peer, world
from hub_worlds import NOON, World

from simulators.iothub.core.throttles import Operation, Throttles
from simulators.iothub.wire.amqp.client import of_kind
from simulators.iothub.wire.amqp.messages import Message, Properties
from simulators.iothub.wire.amqp.performatives import Accepted, Disposition

# The fixtures that the tests ask for by name.
__all__ = ["peer", "world"]


def send(peer: Peer, device: str = "d1") -> str:
    """Send a message; returns what became of it, in a word."""
    writer = peer.client.attach_writer(DEVICEBOUND)
    properties = Properties(message_id="m", to=f"/devices/{device}/messages/devicebound")
    peer.client.send(writer, Message(properties=properties, data=(b"x" * 5000,)))
    (disposition,) = of_kind(peer.exchange(), Disposition)
    state = disposition.state
    return "accepted" if isinstance(state, Accepted) else str(state.error.condition)


CONDITIONS = {
    429: "com.microsoft:device-container-throttled",
    500: "amqp:internal-error",
    503: "com.microsoft:server-busy",
    504: "com.microsoft:timeout",
}


@pytest.mark.parametrize(("status", "condition"), CONDITIONS.items())
def test_a_fault_refuses_the_message_of_one_device_once(world: World, peer: Peer, status: int, condition: str) -> None:
    world.register("d2")
    world.switchboard.plant_fault({"kind": "error", "value": status, "deviceId": "d1"})
    assert [send(peer, "d2"), send(peer), send(peer)] == ["accepted", condition, "accepted"]


def test_a_tier_takes_a_minutes_worth_and_a_queue_of_messages(world: World, peer: Peer) -> None:
    world.hub.impose(Throttles.of("S1", 1))
    assert world.hub.throttles
    for _ in range(115):
        world.hub.throttles.admit(Operation.MESSAGE, world.clock.now)
    assert [send(peer), send(peer)] == ["accepted", "com.microsoft:device-container-throttled"]
    assert world.hub.throttles.document(NOON)["dailyMessages"]["used"] == 2


def test_amqp_connections_break_all_at_once(world: World, peer: Peer) -> None:
    other = Peer(world).start()
    assert world.switchboard.plant_fault({"kind": "kill-amqp"})["struck"] == 1
    assert (peer.pipe.is_closed, other.pipe.is_closed) == (True, True)
    assert world.hub.faults.planted == {}
