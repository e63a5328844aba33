"""The MQTT 3.1.1 codec in one import: packets, `encode`, and the incremental `Decoder`."""

from simulators.iothub.errors import ProtocolError, UnsupportedProtocolLevelError
from simulators.iothub.wire.decoding import Decoder
from simulators.iothub.wire.encoding import encode
from simulators.iothub.wire.packets import (
    SUBACK_FAILURE,
    Connack,
    ConnackCode,
    Connect,
    Disconnect,
    Packet,
    PacketType,
    Pingreq,
    Pingresp,
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
)

__all__ = [
    "SUBACK_FAILURE",
    "Connack",
    "ConnackCode",
    "Connect",
    "Decoder",
    "Disconnect",
    "Packet",
    "PacketType",
    "Pingreq",
    "Pingresp",
    "ProtocolError",
    "Puback",
    "Pubcomp",
    "Publish",
    "Pubrec",
    "Pubrel",
    "Suback",
    "Subscribe",
    "Unsuback",
    "Unsubscribe",
    "UnsupportedProtocolLevelError",
    "Will",
    "encode",
]
