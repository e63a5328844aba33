"""What arrived from the fleet, and what did not. Pure.

A device's sequence runs over the life of its state directory, through all boots. So what is missing is computed for
each (device, module): every number from 1 to the highest one seen that never arrived.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from cloud_registry.ports import TelemetryEvent, TelemetryRow, UnreadableEvent
from manifests.errors import ManifestError
from manifests.telemetry import Envelope, batch_members

# A summary names this many gaps of a device; `missing` counts all of them.
GAPS_NAMED_MAX = 100
# What JSON numbers carry exactly, and what a 32-bit column holds.
SEQUENCE_MAX = 2**53
VERSION_MAX = 2**31 - 1
NAME_LENGTH_MAX = 128


@dataclass(slots=True)
class _Boot:
    boot: str
    received: int = 0
    first: int = 0
    last: int = 0


@dataclass(slots=True)
class _Version:
    received: int = 0
    errors: int = 0
    confidence_sum: float = 0.0
    confidences: int = 0
    devices: set[str] = field(default_factory=set)


def read_event(event: TelemetryEvent) -> list[Envelope | UnreadableEvent]:
    """What a message carries: envelopes of the device that the hub knows to have sent it, one or many.

    The hub's word on who sent it counts; what an envelope says of itself must agree with it. A batch with a bad member
    gives its good ones all the same, since the device will not send them again.
    """
    try:
        members = batch_members(event.body)
    except ManifestError as err:
        return [UnreadableEvent(event.sequence, event.device_id, event.module_id, str(err))]
    return [_read_member(event, member) for member in members]


def _read_member(event: TelemetryEvent, member: bytes) -> Envelope | UnreadableEvent:
    def unreadable(reason: str) -> UnreadableEvent:
        return UnreadableEvent(event.sequence, event.device_id, event.module_id, reason)

    try:
        envelope = Envelope.from_json(member)
    except ManifestError as err:
        return unreadable(str(err))
    if not _is_storable(envelope):
        return unreadable("a number or a name in it is larger than any of ours")
    if envelope.device != event.device_id:
        return unreadable(f"it says that it is from device {envelope.device!r}")
    if envelope.module not in ("", event.module_id):
        return unreadable(f"it says that it is from module {envelope.module!r}")
    return envelope


def _is_storable(envelope: Envelope) -> bool:
    """Whether databases can hold it. One message that no database takes must not stop all that come after it."""
    words = (envelope.boot, envelope.model)
    return (
        envelope.sequence <= SEQUENCE_MAX
        and abs(envelope.version) <= VERSION_MAX
        and all(len(word) <= NAME_LENGTH_MAX and "\0" not in word for word in words)
    )


def summarise(
    rows: Iterable[TelemetryRow],
    duplicates: Mapping[tuple[str, str, str], int],
    unreadable: Mapping[tuple[str, str], int],
) -> dict[str, Any]:
    """The summary as JSON values, wire spelling.

    Args:
        rows: by device, module and sequence; they are read once and not kept.
        duplicates: copies beside the first, by (device, module, boot).
        unreadable: messages that were no envelopes, by (device, module).
    """
    versions: dict[tuple[str, int], _Version] = {}
    devices = [
        _device(device, module, group, duplicates, versions)
        for (device, module), group in groupby(rows, key=lambda row: (row.device, row.module))
    ]
    return {
        "received": sum(entry["received"] for entry in devices),
        "missing": sum(entry["missing"] for entry in devices),
        "duplicates": sum(duplicates.values()),
        "unreadable": sum(unreadable.values()),
        "devices": devices,
        "models": [_version(name, version, versions[name, version]) for name, version in sorted(versions)],
        "unreadableBy": [
            {"device": device, "module": module, "count": count}
            for (device, module), count in sorted(unreadable.items())
        ],
    }


def _device(
    device: str,
    module: str,
    rows: Iterable[TelemetryRow],
    duplicates: Mapping[tuple[str, str, str], int],
    versions: dict[tuple[str, int], _Version],
) -> dict[str, Any]:
    boots: dict[str, _Boot] = {}
    received = missing = first = last = 0
    named: list[list[int]] = []
    for row in rows:
        # Two boots share a number only where a state directory was lost; the number is no gap then.
        if row.sequence > last + 1:
            missing += row.sequence - last - 1
            if len(named) < GAPS_NAMED_MAX:
                named.append([last + 1, row.sequence - 1])
        first, last = first or row.sequence, max(last, row.sequence)
        received += 1
        _count_boot(boots, row)
        _count_version(versions, row)
    return {
        "device": device,
        "module": module,
        "received": received,
        "firstSeq": first,
        "lastSeq": last,
        "missing": missing,
        "gaps": named,
        "duplicates": sum(count for key, count in duplicates.items() if key[:2] == (device, module)),
        "boots": [
            {
                "boot": boot.boot,
                "received": boot.received,
                "firstSeq": boot.first,
                "lastSeq": boot.last,
                "duplicates": duplicates.get((device, module, boot.boot), 0),
            }
            for boot in boots.values()
        ],
    }


def _count_boot(boots: dict[str, _Boot], row: TelemetryRow) -> None:
    boot = boots.setdefault(row.boot, _Boot(row.boot, first=row.sequence))
    boot.received += 1
    boot.last = row.sequence


def _count_version(versions: dict[tuple[str, int], _Version], row: TelemetryRow) -> None:
    version = versions.setdefault((row.model, row.version), _Version())
    version.received += 1
    version.errors += row.kind == "error"
    version.devices.add(row.device)
    if row.confidence is not None:
        version.confidence_sum += row.confidence
        version.confidences += 1


def _version(name: str, version: int, counts: _Version) -> dict[str, Any]:
    mean = counts.confidence_sum / counts.confidences if counts.confidences else None
    return {
        "model": name,
        "version": version,
        "received": counts.received,
        "inferences": counts.received - counts.errors,
        "errors": counts.errors,
        "devices": len(counts.devices),
        "meanConfidence": None if mean is None else round(mean, 4),
    }
