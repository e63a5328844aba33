"""Mutated streams of MQTT against the decoder and against a hub; whatever comes, each gives packets or a clean end.

A million cases: ``python tests/property/iothub/mqtt_fuzz.py --cases 1000000`` (a few minutes). The same case follows
from the same seed, so a failure names both.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))
sys.path.insert(0, str(Path(__file__).parents[2] / "unit" / "iothub"))
sys.path.insert(0, str(Path(__file__).parent))

from hub_worlds import HOST, Client, Pipe, World
from mutations import Mutations, pieces_of, run_from_command_line

from simulators.iothub.errors import ProtocolError
from simulators.iothub.server.dialogue import State
from simulators.iothub.wire.mqtt import (
    Connack,
    Connect,
    Decoder,
    Disconnect,
    Packet,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Unsuback,
    Unsubscribe,
    Will,
    encode,
)

PACKET_BYTES_MAX = 4_096
INTERESTING_BYTES = bytes.fromhex("00 01 04 7F 80 FF 10 30 32 3D 82 A2 C0 E0 2B 23")
ODD_ENDS = (b"\x30\xff\xff\xff\x7f", b"\x30\x80\x80\x80\x80", b"\xc0", b"\x10\x00")

SEEDS: tuple[Packet, ...] = (
    Connect(client_id="d1", username=f"{HOST}/d1/?api-version=2021-04-12", password=b"x", keep_alive_s=60),
    Connect(client_id="d1", will=Will(topic="devices/d1/messages/events/", payload=b"gone", qos=1)),
    Connack(session_present=True),
    Publish(topic="devices/d1/messages/events/%24.mid=1&a=b", payload=b"{}", qos=1, packet_id=1),
    Publish(topic="devices/d1/modules/m1/messages/events/", payload=b"x"),
    Publish(topic="$iothub/twin/GET/?$rid=1"),
    Publish(topic="$iothub/twin/PATCH/properties/reported/?$rid=2", payload=b'{"a":{"b":[1,null]}}'),
    Publish(topic="$iothub/methods/res/200/?$rid=3", payload=b"[]", qos=1, packet_id=2),
    Puback(1), Pubrec(2), Pubrel(3), Pubcomp(4),
    Subscribe(packet_id=5, filters=(("$iothub/methods/POST/#", 0), ("devices/d1/messages/devicebound/#", 1))),
    Subscribe(packet_id=6, filters=(("$iothub/twin/res/#", 0), ("$iothub/twin/PATCH/properties/desired/#", 1))),
    Suback(packet_id=5, codes=(0, 1)),
    Unsubscribe(packet_id=7, filters=("$iothub/twin/res/#",)),
    Unsuback(7), Pingreq(), Disconnect(),
)  # fmt: skip
MUTATIONS = Mutations(tuple(encode(packet) for packet in SEEDS), INTERESTING_BYTES, ODD_ENDS)


def decoded(pieces: list[bytes]) -> tuple[list[Packet], str | None]:
    """What a decoder makes of a stream, and its complaint."""
    decoder = Decoder(PACKET_BYTES_MAX)
    packets: list[Packet] = []
    try:
        for piece in pieces:
            packets += decoder.feed(piece)
            assert decoder.buffered_bytes <= PACKET_BYTES_MAX + 5
    except ProtocolError as err:
        return [*packets, *err.decoded], err.message
    return packets, None


def check_decoder(stream: bytes, chance: random.Random) -> None:
    """Whole or in pieces, a stream means the same; and what was read can be written and read again."""
    whole = decoded([stream])
    assert whole == decoded(pieces_of(stream, chance))
    for packet in whole[0]:
        assert decoded([encode(packet)]) == ([packet], None)


class HubUnderFire:
    """One hub for many connections of one device; each gets a stream after a good CONNECT, or before any."""

    def __init__(self) -> None:
        self.world = World()
        self.device = Client(self.world, self.world.register("d1"))
        self.opening = encode(self.world.connect_packet(self.device.identity_id, clean_session=True))

    def check(self, stream: bytes, chance: random.Random) -> None:
        """The hub raises nothing, and closes the connection exactly when its dialogue has ended."""
        pipe = Pipe()
        dialogue = self.world.switchboard.open(pipe)
        opening = self.opening if chance.random() < 0.9 else b""
        for piece in [opening, *pieces_of(stream, chance)]:
            if pipe.is_closed:
                break
            dialogue.receive(piece, self.world.clock.now)
            self.world.switchboard.settle()
        assert pipe.is_closed == (dialogue.state is State.CLOSED)
        answers = Decoder()
        answers.feed(bytes(pipe.written))
        assert answers.buffered_bytes == 0
        pipe.is_closed = True
        self.world.switchboard.closed(dialogue)
        assert self.world.switchboard.connection_count == 0
        assert self.world.hub.service_statistics() == {"connectedDeviceCount": 0}


def fuzz(cases: int, seed: int, *, hub_every: int = 10) -> None:
    """Run cases; raises AssertionError with the stream that breaks a rule."""
    fire = HubUnderFire()
    for case in range(cases):
        chance = random.Random(seed * 1_000_003 + case)
        stream = MUTATIONS.stream(chance)
        try:
            check_decoder(stream, chance)
            if case % hub_every == 0:
                fire.check(stream, chance)
        except Exception as err:
            raise AssertionError(f"seed {seed}, case {case}: {stream!r}") from err


if __name__ == "__main__":
    run_from_command_line(__doc__ or "", fuzz)
