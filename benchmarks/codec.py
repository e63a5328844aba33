"""MQTT codec: telemetry of QoS 1, written and read, beside paho-mqtt's own packing and unpacking.

Both sides of a comparison run in this process, in turn, and the best of several repeats counts, since noise only adds.
paho has no decoder apart from its socket loop, so the reading side is compared with `Client._handle_publish` on a body
that is complete already: cutting the stream into packets is counted for ours and not for paho.
"""

import time
from collections.abc import Callable
from typing import Any

from paho.mqtt import client as paho

from simulators.iothub.wire.mqtt import Decoder, Puback, Publish, encode

TOPIC = "devices/line-3-camera-07/modules/slipway/messages/events/%24.mid=8f14e45f-1042&%24.ct=application%2Fjson"
MESSAGES = 20_000
REPEATS = 5
PAYLOAD_SIZES = (64, 300, 4096)


class _SinkClient(paho.Client):  # type: ignore[misc]
    """paho's client, which keeps what it would send and what it received."""

    def __init__(self) -> None:
        super().__init__()
        # paho asks only whether there is a socket before it packs.
        self._sock = object()
        self.queued: list[Any] = []
        self.received: list[Any] = []

    def _packet_queue(self, command: int, packet: bytes, mid: int, qos: int, info: Any = None) -> int:  # noqa: ARG002
        self.queued.append(packet)
        return 0

    def _handle_on_message(self, message: Any) -> None:
        self.received.append(message)

    def done(self) -> None:
        self._sock = None


def _best_s(work: Callable[[], object]) -> float:
    """The shortest of several runs, in seconds per message."""
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best / MESSAGES


def _measure(payload: bytes) -> dict[str, float]:
    wire = encode(Publish(topic=TOPIC, payload=payload, qos=1, packet_id=7))
    body = wire[1 + (1 if len(wire) < 130 else 2 if len(wire) < 16_000 else 3) :]
    client = _SinkClient()

    def write_ours() -> None:
        for _ in range(MESSAGES):
            encode(Publish(topic=TOPIC, payload=payload, qos=1, packet_id=7))

    def write_paho() -> None:
        client.queued.clear()
        for _ in range(MESSAGES):
            client._send_publish(7, TOPIC.encode(), payload, 1, False, False, None, None)

    def read_ours() -> None:
        decoder = Decoder()
        for _ in range(MESSAGES):
            decoder.feed(wire)
            # paho answers as it reads, so both sides write a PUBACK here.
            encode(Puback(7))

    def read_paho() -> None:
        client.received.clear()
        client.queued.clear()
        for _ in range(MESSAGES):
            client._in_packet["command"] = wire[0]
            client._in_packet["packet"] = body
            client._in_packet["remaining_length"] = len(body)
            client._handle_publish()

    write_paho()
    assert client.queued[0] == wire, "the two encoders disagree"
    read_paho()
    assert client.received[0].payload == payload, "the two decoders disagree"
    seconds = {
        "write": _best_s(write_ours),
        "write_paho": _best_s(write_paho),
        "read": _best_s(read_ours),
        "read_paho": _best_s(read_paho),
    }
    client.done()
    return seconds


def run() -> list[dict[str, Any]]:
    """One row per payload size: microseconds per message for each side, and their ratios (below 1: ours is faster)."""
    rows = []
    for size in PAYLOAD_SIZES:
        seconds = _measure(bytes(size))
        rows.append(
            {
                "payload_bytes": size,
                "messages": MESSAGES,
                "repeats": REPEATS,
                "encode_us": round(seconds["write"] * 1e6, 2),
                "paho_encode_us": round(seconds["write_paho"] * 1e6, 2),
                "encode_ratio": round(seconds["write"] / seconds["write_paho"], 2),
                "decode_us": round(seconds["read"] * 1e6, 2),
                "paho_decode_us": round(seconds["read_paho"] * 1e6, 2),
                "decode_ratio": round(seconds["read"] / seconds["read_paho"], 2),
            }
        )
    return rows


if __name__ == "__main__":
    import json

    for row in run():
        print(json.dumps(row))
