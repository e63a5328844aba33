"""What devices send to the cloud: a message's body is one envelope, or a JSON array of them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from manifests.document import Document
from manifests.errors import ManifestError


class Envelope(Document, frozen=True, kw_only=True):
    """A scored reading on its way to the cloud.

    ``(device, module, boot, sequence)`` is unique for ever: the receiver removes duplicates by it and sees gaps. The
    sequence counts from 1 over the life of the device's state directory and is never reset by a restart.
    """

    device: str
    module: str = ""
    boot: str
    sequence: Annotated[int, msgspec.Meta(ge=1)] = msgspec.field(name="seq")
    device_time: str = msgspec.field(name="at")
    kind: Literal["inference", "error"] = "inference"
    model: str
    version: int
    generation: int = 0
    reading: str = ""
    prediction: str | None = None
    confidence: float | None = None
    latency_ms: float | None = None
    values: dict[str, Any] = {}
    error: str | None = None
    # A sample of this reading, input and all, was kept on the device; the collected files name it by boot and seq.
    collected: bool = False

    @property
    def message_id(self) -> str:
        """The MQTT message id (``$.mid``): stable over re-sends."""
        return f"{self.boot}-{self.sequence}"


def batch_body(envelopes: Sequence[bytes]) -> bytes:
    """The body of a message that carries these envelopes, each as JSON: one stands for itself, more are an array."""
    return envelopes[0] if len(envelopes) == 1 else b"[" + b",".join(envelopes) + b"]"


def batch_members(body: bytes) -> list[bytes]:
    """The JSON of each envelope that a message carries, unchecked; raises ManifestError where it is no JSON."""
    if not body.lstrip().startswith(b"["):
        return [body]
    try:
        return [bytes(member) for member in msgspec.json.decode(body, type=list[msgspec.Raw])]
    except msgspec.DecodeError as err:
        raise ManifestError(f"The batch of envelopes is malformed: {err}") from err


def read_envelopes(body: bytes) -> list[Envelope]:
    """Every envelope of a message, in order; raises ManifestError where one of them is none."""
    return [Envelope.from_json(member) for member in batch_members(body)]
