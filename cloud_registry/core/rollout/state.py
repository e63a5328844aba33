"""Where a rollout stands: the fold of its events, by a table that tests and docs can read. Pure.

    planned → running → completed
              running ⇄ paused            an operator, or a gate under the policy "pause"
              running | paused → aborting → aborted
              running | paused | aborting → rollingBack → rolledBack | rollbackIncomplete

Within `running`, the wave that is open goes opening → soaking → deciding → passed | stopped.
Leaves to the caller: which event comes next (planning.py), and where events are kept.
"""

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from cloud_registry.core.gate import Decision, Evidence
from cloud_registry.core.rollout import events as ev
from cloud_registry.core.rollout.documents import ReleaseContent, RolloutPlan
from cloud_registry.errors import RegistryError


class RolloutState(enum.StrEnum):
    PLANNED = "planned"
    RUNNING = "running"
    PAUSED = "paused"
    ABORTING = "aborting"
    ABORTED = "aborted"
    ROLLING_BACK = "rollingBack"
    ROLLED_BACK = "rolledBack"
    ROLLBACK_INCOMPLETE = "rollbackIncomplete"
    COMPLETED = "completed"


ENDED_STATES = frozenset(
    {
        RolloutState.ABORTED,
        RolloutState.ROLLED_BACK,
        RolloutState.ROLLBACK_INCOMPLETE,
        RolloutState.COMPLETED,
    }
)


class WaveState(enum.StrEnum):
    WAITING = "waiting"
    OPENING = "opening"
    SOAKING = "soaking"
    DECIDING = "deciding"
    PASSED = "passed"
    STOPPED = "stopped"


class HistoryError(RegistryError):
    """The log holds an event that cannot follow the ones before it: it was written by something else than us."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One offer to one device. `written_at` is when its twin was seen to ask for it."""

    written_at: datetime | None = None
    report: ev.DeviceReport | None = None
    is_spared: bool = False

    @property
    def outcome(self) -> ev.Outcome:
        if self.report is not None:
            return self.report.outcome
        return "pending" if self.written_at is None else "offered"

    @property
    def is_decided(self) -> bool:
        return self.is_spared or self.outcome in ev.DECIDED_OUTCOMES


@dataclass(frozen=True, slots=True)
class Wave:
    number: int
    devices: tuple[str, ...]
    state: WaveState = WaveState.WAITING
    opened_at: datetime | None = None
    soak_started_at: datetime | None = None
    decided_at: datetime | None = None
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class Rollback:
    """Taking the offer back: what each device gets, at which generation."""

    cause: ev.StopCause
    reason: str
    generation: int
    epoch: int
    targets: Mapping[str, str | None]
    contents: Mapping[str, ReleaseContent]
    started_at: datetime

    def target(self, device: str) -> ReleaseContent | None:
        key = self.targets.get(device)
        return None if key is None else self.contents[key]


@dataclass(frozen=True, slots=True)
class Rollout:
    """The whole of a rollout at one point of its log. `sequence` numbers the last event that is folded in."""

    plan: RolloutPlan
    state: RolloutState
    sequence: int
    created_at: datetime
    waves: tuple[Wave, ...]
    attempts: Mapping[str, Attempt] = field(default_factory=dict)
    restores: Mapping[str, Attempt] = field(default_factory=dict)
    rollback: Rollback | None = None
    forgiven: frozenset[str] = frozenset()
    pause_cause: ev.StopCause | None = None
    reason: str = ""
    resumed_at: datetime | None = None
    ended_at: datetime | None = None
    epoch: int = 1

    @property
    def is_ended(self) -> bool:
        return self.state in ENDED_STATES

    @property
    def open_wave(self) -> Wave | None:
        """The last wave that was opened."""
        opened = [wave for wave in self.waves if wave.state is not WaveState.WAITING]
        return opened[-1] if opened else None

    @property
    def opened_devices(self) -> tuple[str, ...]:
        """Devices of all waves opened so far, in cohort order: whatever happens, no other device was touched."""
        return tuple(device for wave in self.waves if wave.state is not WaveState.WAITING for device in wave.devices)

    def attempt(self, device: str) -> Attempt:
        return self.attempts.get(device, _NO_ATTEMPT)

    def restore(self, device: str) -> Attempt:
        return self.restores.get(device, _NO_ATTEMPT)

    def evidence(self) -> Evidence:
        """Devices of the opened waves, counted by outcome, each once."""
        counts = dict.fromkeys(("committed", "failed", "reverted", "rejected", "lost", "pending", "forgiven"), 0)
        for device in self.opened_devices:
            outcome = self.attempt(device).outcome
            if outcome in ev.FAILED_OUTCOMES and device in self.forgiven:
                counts["forgiven"] += 1
            else:
                counts["pending" if outcome == "offered" else outcome] += 1
        return Evidence(**counts)


_NO_ATTEMPT = Attempt()


def fold(records: Iterable[ev.RecordedEvent]) -> Rollout:
    """The rollout after these events, from the first on; raises HistoryError where they make no sense."""
    iterator = iter(records)
    first = next(iterator, None)
    if first is None or not isinstance(first.event, ev.RolloutPlanned):
        raise HistoryError("a rollout's log does not begin with its plan", hint="Restore the database from a backup.")
    rollout = _planned(first.event.plan, first)
    for record in iterator:
        rollout = apply(rollout, record)
    return rollout


def apply(rollout: Rollout, record: ev.RecordedEvent) -> Rollout:
    """The rollout after one more event; raises HistoryError for an event that its state does not take."""
    handler = TRANSITIONS.get((rollout.state, type(record.event)))
    if handler is None:
        raise HistoryError(
            f"rollout {rollout.plan.id} is {rollout.state.value}: {type(record.event).__name__} cannot follow",
            hint="Look at its events with: slipway rollout history " + rollout.plan.id,
        )
    return replace(handler(rollout, record.event, record.at), sequence=record.sequence)


def _planned(plan: RolloutPlan, record: ev.RecordedEvent) -> Rollout:
    waves = tuple(Wave(number, devices) for number, devices in enumerate(plan.waves, start=1))
    return Rollout(
        plan=plan,
        state=RolloutState.PLANNED,
        sequence=record.sequence,
        created_at=record.at,
        waves=waves,
        reason=plan.reason,
    )


# Each handler: (rollout, event, at) -> rollout.


def _started(rollout: Rollout, _event: ev.RolloutStarted, _at: datetime) -> Rollout:
    return replace(rollout, state=RolloutState.RUNNING)


def _wave_opened(rollout: Rollout, event: ev.WaveOpened, at: datetime) -> Rollout:
    return _with_wave(rollout, event.wave, state=WaveState.OPENING, opened_at=at)


def _offers_written(rollout: Rollout, event: ev.OffersWritten, at: datetime) -> Rollout:
    return replace(rollout, attempts=_written(rollout.attempts, event.devices, at))


def _restores_written(rollout: Rollout, event: ev.RestoresWritten, at: datetime) -> Rollout:
    return replace(rollout, restores=_written(rollout.restores, event.devices, at))


def _reported(rollout: Rollout, event: ev.DevicesReported, _at: datetime) -> Rollout:
    return replace(rollout, attempts=_with_reports(rollout.attempts, event.reports))


def _restore_reported(rollout: Rollout, event: ev.DevicesReported, _at: datetime) -> Rollout:
    return replace(rollout, restores=_with_reports(rollout.restores, event.reports))


def _lost(rollout: Rollout, event: ev.DevicesLost, _at: datetime) -> Rollout:
    return replace(rollout, attempts=_with_lost(rollout.attempts, event.devices))


def _restore_lost(rollout: Rollout, event: ev.DevicesLost, _at: datetime) -> Rollout:
    return replace(rollout, restores=_with_lost(rollout.restores, event.devices))


def _spared(rollout: Rollout, event: ev.DevicesSpared, _at: datetime) -> Rollout:
    spared = {device: Attempt(is_spared=True) for device in event.devices}
    return replace(rollout, restores={**rollout.restores, **spared})


def _soak_started(rollout: Rollout, event: ev.SoakStarted, at: datetime) -> Rollout:
    return _with_wave(rollout, event.wave, state=WaveState.SOAKING, soak_started_at=at)


def _soak_ended(rollout: Rollout, event: ev.SoakEnded, _at: datetime) -> Rollout:
    return _with_wave(rollout, event.wave, state=WaveState.DECIDING)


def _wave_decided(rollout: Rollout, event: ev.WaveDecided, at: datetime) -> Rollout:
    state = WaveState.PASSED if event.decision.verdict == "advance" else WaveState.STOPPED
    return _with_wave(rollout, event.wave, state=state, decided_at=at, decision=event.decision)


def _paused(rollout: Rollout, event: ev.RolloutPaused, _at: datetime) -> Rollout:
    return replace(rollout, state=RolloutState.PAUSED, pause_cause=event.cause, reason=event.reason)


def _resumed(rollout: Rollout, event: ev.RolloutResumed, at: datetime) -> Rollout:
    resumed = replace(
        rollout,
        state=RolloutState.RUNNING,
        pause_cause=None,
        reason=event.reason,
        resumed_at=at,
        forgiven=rollout.forgiven | set(event.forgiven),
    )
    wave = resumed.open_wave
    if wave is not None and wave.state is WaveState.STOPPED:
        # The same wave goes on with its evidence; the gate judges it anew.
        return _with_wave(resumed, wave.number, state=WaveState.OPENING, decided_at=None, decision=None)
    return resumed


def _abort_requested(rollout: Rollout, event: ev.AbortRequested, _at: datetime) -> Rollout:
    return replace(rollout, state=RolloutState.ABORTING, reason=event.reason)


def _aborted(rollout: Rollout, _event: ev.RolloutAborted, at: datetime) -> Rollout:
    return replace(rollout, state=RolloutState.ABORTED, ended_at=at)


def _rollback_started(rollout: Rollout, event: ev.RollbackStarted, at: datetime) -> Rollout:
    rollback = Rollback(
        cause=event.cause,
        reason=event.reason,
        generation=event.generation,
        epoch=event.epoch,
        targets=event.targets,
        contents={**rollout.plan.contents, **event.contents},
        started_at=at,
    )
    return replace(rollout, state=RolloutState.ROLLING_BACK, rollback=rollback, reason=event.reason, epoch=event.epoch)


def _rollback_ended(rollout: Rollout, event: ev.RollbackEnded, at: datetime) -> Rollout:
    state = RolloutState.ROLLBACK_INCOMPLETE if event.not_restored else RolloutState.ROLLED_BACK
    return replace(rollout, state=state, ended_at=at)


def _completed(rollout: Rollout, _event: ev.RolloutCompleted, at: datetime) -> Rollout:
    return replace(rollout, state=RolloutState.COMPLETED, ended_at=at)


def _with_wave(rollout: Rollout, number: int, **changes: Any) -> Rollout:
    waves = list(rollout.waves)
    waves[number - 1] = replace(waves[number - 1], **changes)
    return replace(rollout, waves=tuple(waves))


def _written(attempts: Mapping[str, Attempt], devices: Iterable[str], at: datetime) -> dict[str, Attempt]:
    changed = {device: replace(attempts.get(device, _NO_ATTEMPT), written_at=at) for device in devices}
    return {**attempts, **changed}


def _with_reports(attempts: Mapping[str, Attempt], reports: Mapping[str, ev.DeviceReport]) -> dict[str, Attempt]:
    changed = {device: replace(attempts.get(device, _NO_ATTEMPT), report=report) for device, report in reports.items()}
    return {**attempts, **changed}


def _with_lost(attempts: Mapping[str, Attempt], devices: Iterable[str]) -> dict[str, Attempt]:
    """Silence is recorded beside the last thing that the device said."""
    changed = {}
    for device in devices:
        attempt = attempts.get(device, _NO_ATTEMPT)
        last = attempt.report or ev.DeviceReport(outcome="lost")
        changed[device] = replace(
            attempt,
            report=ev.DeviceReport(
                outcome="lost",
                phase=last.phase,
                loaded_version=last.loaded_version,
                loaded_digest=last.loaded_digest,
            ),
        )
    return {**attempts, **changed}


Handler = Callable[[Rollout, Any, datetime], Rollout]
_S = RolloutState

# The whole machine. A pair that is not here is refused: the log would make no sense.
TRANSITIONS: dict[tuple[RolloutState, type[Any]], Handler] = {
    (_S.PLANNED, ev.RolloutStarted): _started,
    (_S.PLANNED, ev.AbortRequested): _abort_requested,
    (_S.RUNNING, ev.WaveOpened): _wave_opened,
    (_S.RUNNING, ev.OffersWritten): _offers_written,
    (_S.RUNNING, ev.DevicesReported): _reported,
    (_S.RUNNING, ev.DevicesLost): _lost,
    (_S.RUNNING, ev.SoakStarted): _soak_started,
    (_S.RUNNING, ev.SoakEnded): _soak_ended,
    (_S.RUNNING, ev.WaveDecided): _wave_decided,
    (_S.RUNNING, ev.RolloutPaused): _paused,
    (_S.RUNNING, ev.AbortRequested): _abort_requested,
    (_S.RUNNING, ev.RollbackStarted): _rollback_started,
    (_S.RUNNING, ev.RolloutCompleted): _completed,
    # A rollout of the kind "rollback" that failed on some devices.
    (_S.RUNNING, ev.RollbackEnded): _rollback_ended,
    # An offer may reach a twin just before the pause or the abort is stored: it is recorded, not repeated.
    (_S.PAUSED, ev.OffersWritten): _offers_written,
    (_S.PAUSED, ev.DevicesReported): _reported,
    (_S.PAUSED, ev.RolloutResumed): _resumed,
    (_S.PAUSED, ev.AbortRequested): _abort_requested,
    (_S.PAUSED, ev.RollbackStarted): _rollback_started,
    (_S.ABORTING, ev.OffersWritten): _offers_written,
    (_S.ABORTING, ev.DevicesReported): _reported,
    (_S.ABORTING, ev.DevicesLost): _lost,
    (_S.ABORTING, ev.RolloutAborted): _aborted,
    (_S.ABORTING, ev.RollbackStarted): _rollback_started,
    (_S.ROLLING_BACK, ev.RestoresWritten): _restores_written,
    (_S.ROLLING_BACK, ev.DevicesReported): _restore_reported,
    (_S.ROLLING_BACK, ev.DevicesLost): _restore_lost,
    (_S.ROLLING_BACK, ev.DevicesSpared): _spared,
    (_S.ROLLING_BACK, ev.RollbackEnded): _rollback_ended,
}
