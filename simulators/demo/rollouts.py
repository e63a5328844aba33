"""Reads ``slipway rollout status --json``: waves, their evidence, and what became of each device. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

ENDED_STATES = frozenset({"completed", "rolledBack", "rollbackIncomplete", "aborted"})


@dataclass(frozen=True, slots=True)
class WaveView:
    number: int
    devices: tuple[str, ...]
    state: str
    opened_at: datetime | None
    decided_at: datetime | None
    verdict: str
    reasons: tuple[str, ...]

    @property
    def is_decided(self) -> bool:
        return self.verdict in ("advance", "stop")


@dataclass(frozen=True, slots=True)
class DeviceView:
    """A device's part in a rollout: its wave, and how the offer ended there."""

    device_id: str
    wave: int
    phase: str
    outcome: str
    error_code: str | None
    disagreement: float | None
    confidence_mean: float | None


@dataclass(frozen=True, slots=True)
class RolloutView:
    rollout_id: str
    kind: str
    version: int | None
    state: str
    reason: str
    generation: int
    waves: tuple[WaveView, ...]
    devices: tuple[DeviceView, ...]

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED_STATES

    def open_wave(self) -> WaveView | None:
        """The latest wave that was opened."""
        return next((wave for wave in reversed(self.waves) if wave.opened_at is not None), None)

    def in_wave(self, number: int) -> tuple[DeviceView, ...]:
        return tuple(device for device in self.devices if device.wave == number)

    def outcomes(self) -> Counter[str]:
        return Counter(device.outcome for device in self.devices)

    def waves_kept_order(self) -> bool:
        """True if each wave was opened only after the one before had been decided in its favour."""
        opened = [wave for wave in self.waves if wave.opened_at is not None]
        return all(
            earlier.verdict == "advance"
            and earlier.decided_at is not None
            and later.opened_at is not None
            and earlier.decided_at <= later.opened_at
            for earlier, later in pairwise(opened)
        )


def read_rollout(status: Mapping[str, Any]) -> RolloutView:
    """Read one status document; raises KeyError or ValueError where it is not one."""
    return RolloutView(
        rollout_id=str(status["id"]),
        kind=str(status.get("kind") or ""),
        version=status.get("version"),
        state=str(status["state"]),
        reason=str(status.get("reason") or ""),
        generation=int(status.get("generation") or 0),
        waves=tuple(_wave(wave) for wave in status.get("waves") or ()),
        devices=tuple(_device(name, entry) for name, entry in sorted((status.get("devices") or {}).items())),
    )


def turned_away(wave: Sequence[DeviceView]) -> bool:
    """True if a device reverted for what its trial showed, and none committed.

    The gate may stop at the first failure: it then takes the rest of the wave back before their own trials end.
    """
    reverted = [device for device in wave if device.outcome == "reverted"]
    return (
        bool(reverted)
        and all((device.error_code or "").startswith("TRIAL_") for device in reverted)
        and not any(device.outcome == "committed" for device in wave)
    )


def _wave(wave: Mapping[str, Any]) -> WaveView:
    decision = wave.get("decision") or {}
    return WaveView(
        number=int(wave["number"]),
        devices=tuple(wave.get("devices") or ()),
        state=str(wave.get("state") or ""),
        opened_at=_instant(wave.get("openedAt")),
        decided_at=_instant(wave.get("decidedAt")),
        verdict=str(decision.get("verdict") or ""),
        reasons=tuple(str(reason) for reason in decision.get("reasons") or ()),
    )


def _device(name: str, entry: Mapping[str, Any]) -> DeviceView:
    trial, error = entry.get("trial") or {}, entry.get("error") or {}
    return DeviceView(
        device_id=name,
        wave=int(entry.get("wave") or 0),
        phase=str(entry.get("phase") or ""),
        outcome=str(entry.get("outcome") or ""),
        error_code=error.get("code"),
        disagreement=trial.get("disagreement"),
        confidence_mean=trial.get("meanConfidence"),
    )


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
