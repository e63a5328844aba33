"""The closing accounts: what devices say they sent, what the cloud received, and how right the answers were. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True)
class Sent:
    """What a device's outbox says, from ``slipway-agent status --json``."""

    enqueued: int
    acknowledged: int
    waiting: int
    dropped: int
    last_sequence: int


@dataclass(frozen=True, slots=True)
class Received:
    """What the cloud side has of a device, from ``slipway telemetry summary --json``."""

    distinct: int = 0
    last_sequence: int = 0
    gaps: int = 0
    duplicates: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """Both sides of one device."""

    device_id: str
    sent: Sent
    received: Received

    @property
    def is_whole(self) -> bool:
        """True if every reading that was ever scored has arrived; repeats are allowed, at least once is the promise."""
        return (
            self.sent.enqueued > 0
            and self.received.distinct == self.sent.enqueued
            and self.received.last_sequence == self.sent.last_sequence
            and self.received.gaps == self.sent.waiting == self.sent.dropped == 0
        )


def settle(sent: Mapping[str, Sent], received: Mapping[str, Received]) -> list[Account]:
    """Set both sides against each other; a device known to one side only is in the list too."""
    nothing_sent = Sent(enqueued=0, acknowledged=0, waiting=0, dropped=0, last_sequence=0)
    return [
        Account(device_id, sent.get(device_id, nothing_sent), received.get(device_id, Received()))
        for device_id in sorted(sent.keys() | received.keys())
    ]


@dataclass(frozen=True, slots=True)
class VersionFigures:
    """How one model version did in the field, from telemetry joined with the labels."""

    version: int
    scored: int
    devices: int
    accuracy: float
    confidence_mean: float
    as_trained: float
    """Share of answers equal to what scikit-learn gave for the same digit with the same version."""


def judge_versions(
    envelopes: Iterable[Mapping[str, Any]],
    labels: Mapping[str, int],
    answers: Mapping[int, Mapping[str, int]],
) -> list[VersionFigures]:
    """Accuracy and confidence by version; error envelopes and readings without a label are left out."""
    by_version: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for envelope in envelopes:
        if envelope.get("kind", "inference") == "inference" and envelope.get("reading") in labels:
            by_version[int(envelope["version"])].append(envelope)
    return [
        VersionFigures(
            version=version,
            scored=len(scored),
            devices=len({envelope["device"] for envelope in scored}),
            accuracy=_share(_digit(envelope) == labels[envelope["reading"]] for envelope in scored),
            confidence_mean=sum(float(envelope.get("confidence") or 0.0) for envelope in scored) / len(scored),
            as_trained=_share(
                _digit(envelope) == answers.get(version, {}).get(envelope["reading"]) for envelope in scored
            ),
        )
        for version, scored in sorted(by_version.items())
    ]


def devices_that_scored(envelopes: Iterable[Mapping[str, Any]], version: int) -> set[str]:
    return {str(envelope["device"]) for envelope in envelopes if envelope["version"] == version}


def longest_silences_s(envelopes: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """By device, the longest time between two consecutive readings, by the device's own clock."""
    instants: dict[str, list[datetime]] = defaultdict(list)
    for envelope in envelopes:
        instants[str(envelope["device"])].append(datetime.fromisoformat(str(envelope["at"])))
    return {
        device_id: max(((later - earlier).total_seconds() for earlier, later in pairwise(sorted(seen))), default=0.0)
        for device_id, seen in sorted(instants.items())
    }


def _digit(envelope: Mapping[str, Any]) -> int | None:
    prediction = envelope.get("prediction")
    return int(prediction) if isinstance(prediction, str) and prediction.isdecimal() else None


def _share(claims: Iterable[bool]) -> float:
    held: Sequence[bool] = list(claims)
    return sum(held) / len(held) if held else 0.0
