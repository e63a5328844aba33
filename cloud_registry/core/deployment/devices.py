"""A list of devices to look at without a hub: twins as a query of the hub gives them. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any


class DeviceListError(ValueError):
    """The document is no list of device twins."""


def read_devices(document: Any) -> list[Mapping[str, Any]]:
    """The twins of a document: a list, or one under ``devices`` or ``value``; raises DeviceListError.

    Each has a ``deviceId``; what else a condition asks for and a twin lacks is undefined.
    """
    if isinstance(document, Mapping):
        document = next((document[key] for key in ("devices", "value", "items") if key in document), [document])
    if not isinstance(document, list):
        raise DeviceListError("there is no list of devices")
    devices: list[Mapping[str, Any]] = []
    for number, device in enumerate(document):
        if not isinstance(device, Mapping):
            raise DeviceListError(f"device {number} is not an object")
        identifier = next((value for key, value in device.items() if key.lower() == "deviceid"), None)
        if not isinstance(identifier, str):
            raise DeviceListError(f"device {number} has no deviceId")
        devices.append({**device, "deviceId": identifier})
    return devices


def device_of(devices: Sequence[Mapping[str, Any]], device_id: str) -> Mapping[str, Any] | None:
    """The twin of one device, None where the list has it not."""
    return next((device for device in devices if device["deviceId"] == device_id), None)
