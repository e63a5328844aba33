"""What the fleet looks like, read from module twins as the hub's REST interface gives them. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

PHASES_UNDER_WAY = ("offered", "downloading", "verifying", "staged", "shadow", "switching", "trial")
PHASES_OF_FAILURE = ("failed", "reverting", "revertedQuarantined", "rejected")


@dataclass(frozen=True, slots=True)
class Device:
    """A device as the story casts it."""

    device_id: str
    site: str
    engine: str


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One line of the table: what a device was offered, where it stands, and what its engine holds."""

    device: Device
    is_connected: bool = False
    generation: int = 0
    phase: str = ""
    offered_version: int | None = None
    loaded_version: int | None = None
    loaded_digest: str | None = None
    loaded_format: str | None = None
    boot: str = ""
    error_code: str | None = None
    desired_generation: int = 0
    desired_version: int | None = None
    desired_digest: str | None = None

    @property
    def is_under_way(self) -> bool:
        return self.phase in PHASES_UNDER_WAY

    def runs(self, version: int, digests: Iterable[str]) -> bool:
        """True if the device was told to run this version and committed to it, with one of its files loaded."""
        return (
            self.phase == "committed"
            and self.generation == self.desired_generation
            and self.loaded_version == version == self.desired_version
            and self.loaded_digest == self.desired_digest
            and self.loaded_digest in set(digests)
        )


def read_device(device: Device, twin: dict[str, Any] | None, model: str) -> DeviceState:
    """Read one device's state of one model from its module twin; an absent twin is a device never seen."""
    if twin is None:
        return DeviceState(device)
    properties = _mapping(twin.get("properties"))
    reported, desired = _mapping(properties.get("reported")), _mapping(properties.get("desired"))
    entry = _mapping(_mapping(reported.get("models")).get(model))
    offer = _mapping(_mapping(desired.get("models")).get(model))
    return DeviceState(
        device=device,
        is_connected=twin.get("connectionState") == "Connected",
        generation=entry.get("generation", 0),
        phase=entry.get("phase", ""),
        offered_version=entry.get("version"),
        loaded_version=entry.get("loadedVersion"),
        loaded_digest=entry.get("loadedDigest"),
        loaded_format=entry.get("loadedFormat"),
        boot=_mapping(reported.get("agent")).get("boot", ""),
        error_code=_mapping(entry.get("error")).get("code"),
        desired_generation=offer.get("generation", 0),
        desired_version=offer.get("version"),
        desired_digest=offer.get("digest"),
    )


def read_fleet(devices: Sequence[Device], twins: Iterable[dict[str, Any]], model: str) -> list[DeviceState]:
    """The fleet in the order of `devices`, whatever the order of the twins."""
    by_id = {twin.get("deviceId"): twin for twin in twins}
    return [read_device(device, by_id.get(device.device_id), model) for device in devices]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
