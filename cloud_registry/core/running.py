"""Which version ran on which device at which time, from what devices report. Pure.

Handles: what a module twin says is loaded, and which periods begin and end when it says something new.
Leaves to the caller: keeping the periods, and looking at twins often enough. What came and went between two looks is
not known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cloud_registry.ports import ModuleTwin


@dataclass(frozen=True, slots=True)
class Place:
    """One model in one module of one device."""

    device: str
    module: str
    model: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an engine says it holds; neither version nor digest where it holds nothing."""

    version: int | None = None
    digest: str | None = None
    generation: int | None = None
    rollout: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """From this instant on (in seconds since 1970) something else is loaded there."""

    place: Place
    loaded: Loaded
    since_s: float


@dataclass(frozen=True, slots=True)
class RunningPeriod:
    """A stretch of time in which one thing was loaded; `until_s` is None while it lasts. Seconds since 1970."""

    device: str
    module: str
    model: str
    version: int | None
    digest: str | None
    generation: int | None
    rollout: str | None
    since_s: float
    until_s: float | None
    recorded_at_s: float

    @property
    def is_loaded(self) -> bool:
        return self.version is not None or self.digest is not None


@dataclass(frozen=True, slots=True)
class PeriodQuery:
    """Everything that is given must hold. `at` is an instant that lies within the period."""

    model: str | None = None
    version: int | None = None
    device: str | None = None
    at: float | None = None
    limit: int | None = None


def changes_in(
    twins: Iterable[ModuleTwin], known: Mapping[Place, Loaded], now_s: float, *, whole_module: str | None = None
) -> list[Change]:
    """What is loaded now and was not, as far as it is known.

    Twins are read as raw JSON: a report that is too new or too broken to be understood whole still says what runs.

    Args:
        whole_module: the twins are all there are of the modules of this name, so that what is known of others is over.
    """
    found: list[Change] = []
    seen: set[Place] = set()
    told: set[tuple[str, str]] = set()
    for twin in twins:
        told.add((twin.device_id, twin.module_id))
        for model, entry in _entries(twin.reported).items():
            place = Place(twin.device_id, twin.module_id, model)
            seen.add(place)
            loaded = _loaded(entry)
            before = known.get(place, Loaded())
            if (loaded.version, loaded.digest) != (before.version, before.digest):
                since_s = _changed_at(twin.reported, model)
                found.append(Change(place, loaded, now_s if since_s is None else min(since_s, now_s)))
    for place, before in known.items():
        is_told = (place.device, place.module) in told or place.module == whole_module
        if is_told and place not in seen and before != Loaded():
            found.append(Change(place, Loaded(), now_s))
    return found


def _entries(reported: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    models = reported.get("models")
    if not isinstance(models, dict):
        return {}
    # Names of ours only: a device may report anything, and what is recorded has bounds.
    return {name: entry for name, entry in models.items() if isinstance(entry, dict) and 0 < len(name) <= 63}


def _loaded(entry: Mapping[str, Any]) -> Loaded:
    version, digest = entry.get("loadedVersion"), entry.get("loadedDigest")
    generation, rollout = entry.get("generation"), entry.get("rollout")
    known_version = version if _is_count(version) else None
    known_digest = digest if isinstance(digest, str) and len(digest) <= 71 else None
    if known_version is None and known_digest is None:
        return Loaded()
    return Loaded(
        known_version,
        known_digest,
        generation if _is_count(generation) else None,
        rollout if isinstance(rollout, str) and len(rollout) <= 128 else None,
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _changed_at(reported: Mapping[str, Any], model: str) -> float | None:
    """When the hub took the device's word in, by the metadata that it keeps for each property."""
    at: Any = reported.get("$metadata")
    for key in ("models", model):
        at = at.get(key) if isinstance(at, dict) else None
    if not isinstance(at, dict):
        return None
    moments = [_seconds(at[key].get("$lastUpdated")) for key in ("loadedVersion", "loadedDigest") if key in at]
    known = [moment for moment in moments if moment is not None]
    return max(known) if known else None


def _seconds(text: object) -> float | None:
    if not isinstance(text, str):
        return None
    try:
        # The hub gives seven digits of a second; Python reads six.
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.timestamp() if moment.tzinfo is not None else None
