"""One message from device to cloud."""

from typing import Annotated, Any, Literal

import msgspec

from manifests.document import Document


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

    @property
    def message_id(self) -> str:
        """The MQTT message id (``$.mid``): stable over re-sends."""
        return f"{self.boot}-{self.sequence}"
