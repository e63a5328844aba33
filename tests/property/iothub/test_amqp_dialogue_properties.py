"""Whatever a client says over AMQP, in whatever order, the hub answers or closes, and forgets it when it has gone."""

from typing import Any

from amqp_peers import DEVICEBOUND, FEEDBACK, Peer, events_address, send_event
from hub_worlds import World
from hypothesis import given, settings
from hypothesis import strategies as st

from simulators.iothub.server.amqp.dialogue import OUTBOUND_BYTES_HIGH, State
from simulators.iothub.server.amqp.links import LINKS_MAX, PARTIAL_BYTES_MAX
from simulators.iothub.wire.amqp import performatives as amqp
from simulators.iothub.wire.amqp.frames import Frame, Heartbeat, Piece, ProtocolHeader
from simulators.iothub.wire.amqp.messages import Message, Properties, encode_message
from simulators.iothub.wire.amqp.values import Symbol, Timestamp

HANDLES = st.integers(0, 5)
COUNTS = st.sampled_from([0, 1, 2, 5, 100, 2**31, 2**32 - 1])
ADDRESSES = st.sampled_from([
    "$cbs", "$management", DEVICEBOUND, FEEDBACK, events_address(0), events_address(1), events_address(9),
    "", "x", None, 7,
])  # fmt: skip
OUTCOMES = st.sampled_from([None, amqp.Accepted(), amqp.Released(), amqp.Rejected(), amqp.Modified(), "odd"])
MESSAGES = st.sampled_from([
    Message(),
    Message(properties=Properties(to="/devices/d1/messages/devicebound"), data=(b"x",)),
    Message(properties=Properties(to="/devices/d1/messages/devicebound", absolute_expiry_time_ms=2**62), data=(b"x",)),
    Message(application_properties={"operation": "put-token", "type": "servicebus.windows.net:sastoken"}, value="x"),
    Message(application_properties={"operation": "READ", "type": "com.microsoft:eventhub", "name": "messages/events"}),
    Message(application_properties={"k": Timestamp(2**62), 1: None}, value=[1]),
]).map(encode_message)  # fmt: skip
PAYLOADS = MESSAGES | st.binary(max_size=20) | MESSAGES.map(lambda data: data[: len(data) // 2])
PERFORMATIVES: st.SearchStrategy[Any] = st.one_of(
    st.builds(amqp.Begin, next_outgoing_id=COUNTS, incoming_window=COUNTS, outgoing_window=COUNTS),
    st.builds(
        amqp.Attach,
        name=st.just("l"),
        handle=HANDLES,
        role=st.booleans(),
        snd_settle_mode=st.integers(0, 2),
        source=st.none() | st.builds(amqp.Source, address=ADDRESSES),
        target=st.none() | st.builds(amqp.Target, address=ADDRESSES),
        initial_delivery_count=COUNTS,
        properties=st.none() | st.builds(lambda epoch: {Symbol("com.microsoft:epoch"): epoch}, COUNTS),
    ),
    st.builds(
        amqp.Flow,
        next_incoming_id=st.none() | COUNTS,
        incoming_window=COUNTS,
        next_outgoing_id=COUNTS,
        outgoing_window=COUNTS,
        handle=st.none() | HANDLES,
        delivery_count=st.none() | COUNTS,
        link_credit=st.none() | COUNTS,
        drain=st.booleans(),
        echo=st.booleans(),
    ),
    st.builds(
        amqp.Disposition,
        role=st.booleans(),
        first=COUNTS,
        last=st.none() | COUNTS,
        settled=st.booleans(),
        state=OUTCOMES,
    ),
    st.builds(amqp.Detach, handle=HANDLES, closed=st.booleans()),
)
TRANSFERS = st.builds(
    amqp.Transfer,
    handle=HANDLES,
    delivery_id=st.none() | COUNTS,
    settled=st.none() | st.booleans(),
    more=st.booleans(),
    aborted=st.booleans(),
)
CHANNELS = st.sampled_from([0, 0, 0, 1])
PIECES: st.SearchStrategy[Piece] = st.one_of(
    st.builds(Frame, CHANNELS, PERFORMATIVES),
    st.builds(Frame, CHANNELS, TRANSFERS, PAYLOADS),
    st.builds(Frame, CHANNELS, st.sampled_from([amqp.End(), amqp.Close()])),
    st.just(Heartbeat()),
    st.just(ProtocolHeader(0)),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(PIECES, max_size=25), st.booleans(), st.lists(st.integers(1, 100), max_size=3))
def test_the_hub_outlives_any_conversation(pieces: list[Piece], has_claim: bool, waits: list[int]) -> None:
    world = World()
    world.register("d1")
    peer = Peer(world).start()
    if has_claim:
        peer.claim()
        # Something is there to be upset: a reader of events, one of feedback, and a link to send on.
        peer.client.attach_reader(events_address(0), 100)
        peer.client.attach_reader(FEEDBACK, 3)
        peer.client.attach_writer(DEVICEBOUND)
        peer.exchange()
    for piece in pieces:
        peer.client.write(piece)
        world.switchboard.amqp.receive(peer.dialogue, peer.client.data_to_send())
        if peer.dialogue.state is not State.CLOSED:
            send_event(world, bytes(1000))
            world.switchboard.amqp.pump()
        assert 0 <= peer.dialogue.partial_bytes <= PARTIAL_BYTES_MAX
        assert len(peer.dialogue.links()) <= LINKS_MAX
        assert peer.pipe.waiting_bytes <= OUTBOUND_BYTES_HIGH + 64 * 1024
        assert (peer.dialogue.state is State.CLOSED) is peer.pipe.is_closed
    for seconds in waits:
        world.clock.now += seconds
        world.switchboard.amqp.tick()
    world.switchboard.amqp.closed(peer.dialogue)
    assert (peer.dialogue.links(), peer.dialogue.partial_bytes) == ([], 0)
    assert world.switchboard.amqp._readers._present == {}
    # Nobody else has noticed.
    other = Peer(world).start()
    assert other.claim() == 200
