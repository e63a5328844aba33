"""Mutated streams of AMQP against the decoder, the message reader and a hub; each gives frames or a clean end.

A million cases: ``python tests/property/iothub/amqp_fuzz.py --cases 1000000`` (some minutes). The same case follows
from the same seed, so a failure names both.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "iothub"))
sys.path.insert(0, str(Path(__file__).parent))

from amqp_peers import DEVICEBOUND, Peer, events_address
from hub_worlds import World
from mutations import Mutations, pieces_of, run_from_command_line

from simulators.iothub.errors import ProtocolError
from simulators.iothub.server.amqp.dialogue import State
from simulators.iothub.wire.amqp.client import AmqpClient
from simulators.iothub.wire.amqp.frames import Decoder, Frame, Piece
from simulators.iothub.wire.amqp.messages import Message, Properties, decode_message, encode_message
from simulators.iothub.wire.amqp.values import Symbol, Timestamp

FRAME_BYTES_MAX = 4_096
INTERESTING_BYTES = bytes.fromhex("00 02 08 40 41 43 45 53 70 80 A0 A1 A3 B0 B1 B3 C0 C1 D0 D1 E0 F0 FF")
ODD_ENDS = (b"\x7f\xff\xff\xff\x02\x00\x00\x00", b"\x00\x00\x00\x07\x02\x00\x00\x00", b"AMQP\x09", b"\x00")


def _seeds() -> tuple[bytes, ...]:
    """What a client of every sort says, a step a seed."""
    client = AmqpClient()
    steps = []

    def said() -> None:
        steps.append(client.data_to_send())

    client.start()
    said()
    client.put_token(client.attach_writer("$cbs"), "SharedAccessSignature sr=x&sig=y&se=1&skn=z", "amqps://h/x")
    said()
    reader = client.attach_reader(events_address(0), 10, "amqp.annotation.x-opt-offset > '-1'")
    said()
    client.give_credit(reader, 100)
    said()
    writer = client.attach_writer(DEVICEBOUND)
    client.send(writer, MESSAGES[0])
    said()
    return tuple(steps)


MESSAGES = (
    Message(properties=Properties(to="/devices/d1/messages/devicebound", message_id="m"), data=(b"x" * 30,)),
    Message(
        application_properties={"operation": "READ", "k": Timestamp(0), "s": Symbol("y")}, value=[1, None, {"a": b"b"}]
    ),
    Message(annotations={"x-opt-offset": "1"}, data=(b"a", b"b")),
)
MUTATIONS = Mutations(_seeds(), INTERESTING_BYTES, ODD_ENDS)
MESSAGE_MUTATIONS = Mutations(
    tuple(encode_message(message) for message in MESSAGES), INTERESTING_BYTES, (b"\xd1", b"\x00")
)


def decoded(pieces: list[bytes]) -> tuple[list[Piece], str | None]:
    """What a decoder makes of a stream, and its complaint."""
    decoder = Decoder(FRAME_BYTES_MAX)
    found: list[Piece] = []
    try:
        for piece in pieces:
            found += decoder.feed(piece)
            assert decoder.buffered_bytes <= FRAME_BYTES_MAX
    except ProtocolError as err:
        return [*found, *err.decoded], err.message
    return found, None


def check_decoder(stream: bytes, chance: random.Random) -> None:
    """Whole or in pieces, a stream means the same; what a frame carries is a message or a protocol error."""
    # Compared as text: a stream may hold NaN, which equals nothing.
    whole = decoded([stream])
    assert repr(whole) == repr(decoded(pieces_of(stream, chance)))
    for piece in whole[0]:
        if isinstance(piece, Frame) and piece.payload:
            read(bytes(piece.payload))


def read(content: bytes) -> None:
    try:
        decode_message(content)
    except ProtocolError:
        return


def check_hub(stream: bytes, chance: random.Random) -> None:
    """The hub raises nothing, and forgets the connection when it has gone."""
    world = World()
    world.register("d1")
    peer = Peer(world)
    if chance.random() < 0.7:
        peer.start()
        peer.claim()
    for piece in pieces_of(stream, chance):
        if peer.dialogue.state is State.CLOSED:
            break
        world.switchboard.amqp.receive(peer.dialogue, piece)
        world.switchboard.settle()
        world.switchboard.amqp.pump()
    world.switchboard.amqp.closed(peer.dialogue)


def fuzz(cases: int, seed: int) -> None:
    """Run cases, every fiftieth against a hub too; raises AssertionError with the stream that breaks a rule."""
    for case in range(cases):
        chance = random.Random(seed * 1_000_003 + case)
        stream = MUTATIONS.stream(chance)
        message = MESSAGE_MUTATIONS.stream(chance)
        try:
            check_decoder(stream, chance)
            read(message)
            if case % 50 == 0:
                check_hub(stream, chance)
        except Exception as err:
            raise AssertionError(f"seed {seed}, case {case}: {stream!r} {message!r}") from err


if __name__ == "__main__":
    run_from_command_line(__doc__ or "", fuzz)
