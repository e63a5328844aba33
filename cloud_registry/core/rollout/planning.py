"""What to do next: from a rollout, what was observed, and the time, to events and twin writes. Pure.

The caller stores the events before it makes the writes, and may die anywhere: planning looks at levels, never at
edges, so the next call with fresh observations goes on from wherever the log and the twins are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from cloud_registry.core.gate import evaluate, is_enough
from cloud_registry.core.rollout import events as ev
from cloud_registry.core.rollout.documents import ReleaseContent, RolloutPlan
from cloud_registry.core.rollout.observation import Aim, DeviceObservation, is_asked_for, judge
from cloud_registry.core.rollout.state import Attempt, Rollout, RolloutState, Wave, WaveState, apply
from manifests.release import Release, TrialTerms

# Tier S1 takes 50 twin updates a second, and a controller ticks about once a second.
WRITES_PER_TICK_MAX = 50
# A window of one day a week is never further away.
DEFERRAL_MAX = timedelta(days=8)

Observations = Mapping[str, DeviceObservation]


@dataclass(frozen=True, slots=True)
class TwinWrite:
    """Ask one device for `entry`, or for the model to go where it is None. Holds only while the twin has this etag."""

    device_id: str
    model: str
    entry: dict[str, Any] | None
    etag: str

    @property
    def patch(self) -> dict[str, Any]:
        return {"models": {self.model: self.entry}}


@dataclass(frozen=True, slots=True)
class Plan:
    """Events to store, then writes to make. `rollout` is what the rollout is once the events are stored."""

    events: tuple[ev.RolloutEvent, ...]
    writes: tuple[TwinWrite, ...]
    rollout: Rollout


def aim_of(rollout: Rollout, device: str) -> Aim:
    """The offer in force for the device: the release, or what it goes back to."""
    plan, rollback = rollout.plan, rollout.rollback
    if rollback is None:
        return Aim(plan.id, plan.generation, 1, _digest(plan.offer(device)))
    return Aim(plan.id, rollback.generation, rollback.epoch, _digest(rollback.target(device)))


def _digest(content: ReleaseContent | None) -> str | None:
    return None if content is None else content.digest


def needed_observations(rollout: Rollout) -> tuple[str, ...]:
    """The devices that the next plan wants to see."""
    opened = rollout.opened_devices
    match rollout.state:
        case RolloutState.RUNNING:
            return opened
        case RolloutState.PAUSED | RolloutState.ABORTING:
            return tuple(device for device in opened if not rollout.attempt(device).is_decided)
        case RolloutState.ROLLING_BACK:
            return tuple(device for device in opened if not rollout.restore(device).is_decided)
        case _:
            return ()


def plan(rollout: Rollout, observations: Observations, now: datetime) -> Plan:
    """The next events and writes. Devices that were not observed are left as they are.

    Planning again without new observations or a later time gives no events.
    """
    draft = _Draft(rollout, observations, now)
    planner = PLANNERS.get(rollout.state)
    if planner is not None:
        planner(draft)
    return Plan(tuple(draft.events), tuple(draft.writes), draft.rollout)


class _Draft:
    """The plan while it is made: each event counts at once for what follows."""

    def __init__(self, rollout: Rollout, observations: Observations, now: datetime) -> None:
        self.rollout = rollout
        self.observations = observations
        self.now = now
        self.events: list[ev.RolloutEvent] = []
        self.writes: list[TwinWrite] = []

    def emit(self, event: ev.RolloutEvent) -> None:
        record = ev.RecordedEvent(self.rollout.sequence + 1, self.now, event)
        self.rollout = apply(self.rollout, record)
        self.events.append(event)


def _plan_planned(draft: _Draft) -> None:
    draft.emit(ev.RolloutStarted())
    draft.emit(ev.WaveOpened(wave=1))


def _plan_running(draft: _Draft) -> None:
    _take_reports(draft)
    _confirm_written(draft)
    _give_up_silent(draft)
    wave = draft.rollout.open_wave
    if wave is None:
        draft.emit(ev.WaveOpened(wave=1))
        return
    _judge_wave(draft, wave)
    if draft.rollout.state is RolloutState.RUNNING:
        _write_offers(draft)


def _plan_paused(draft: _Draft) -> None:
    _take_reports(draft)
    _confirm_written(draft)


def _plan_aborting(draft: _Draft) -> None:
    _take_reports(draft)
    _confirm_written(draft)
    _give_up_silent(draft)
    # A device that was seen without the offer never gets it now.
    waiting = [
        device
        for device in draft.rollout.opened_devices
        if draft.rollout.attempt(device).outcome == "offered"
        or (draft.rollout.attempt(device).outcome == "pending" and device not in draft.observations)
    ]
    if not waiting:
        draft.emit(ev.RolloutAborted())


def _plan_rolling_back(draft: _Draft) -> None:
    _take_reports(draft)
    _confirm_written(draft)
    _spare_untouched(draft)
    _give_up_silent(draft)
    rollout = draft.rollout
    if all(rollout.restore(device).is_decided for device in rollout.opened_devices):
        not_restored = tuple(
            device
            for device in rollout.opened_devices
            if not rollout.restore(device).is_spared and rollout.restore(device).outcome != "committed"
        )
        draft.emit(ev.RollbackEnded(not_restored=not_restored))
        return
    _write_offers(draft)


PLANNERS: dict[RolloutState, Callable[[_Draft], None]] = {
    RolloutState.PLANNED: _plan_planned,
    RolloutState.RUNNING: _plan_running,
    RolloutState.PAUSED: _plan_paused,
    RolloutState.ABORTING: _plan_aborting,
    RolloutState.ROLLING_BACK: _plan_rolling_back,
}


def _current_attempt(rollout: Rollout, device: str) -> Attempt:
    return rollout.attempt(device) if rollout.rollback is None else rollout.restore(device)


def _take_reports(draft: _Draft) -> None:
    reports: dict[str, ev.DeviceReport] = {}
    for device in draft.rollout.opened_devices:
        observation = draft.observations.get(device)
        attempt = _current_attempt(draft.rollout, device)
        if observation is None or attempt.is_spared:
            continue
        judged = judge(aim_of(draft.rollout, device), observation, attempt.report)
        if judged is not None and judged != attempt.report:
            reports[device] = judged
    if reports:
        draft.emit(ev.DevicesReported(reports=reports))


def _confirm_written(draft: _Draft) -> None:
    """Record offers that are in their twins already, for instance from a controller that died after writing them."""
    found = tuple(
        device
        for device in draft.rollout.opened_devices
        if (attempt := _current_attempt(draft.rollout, device)).written_at is None
        and not attempt.is_spared
        and (observation := draft.observations.get(device)) is not None
        and observation.exists
        and is_asked_for(aim_of(draft.rollout, device), observation)
    )
    if found:
        draft.emit(written_event(draft.rollout, found))


def written_event(rollout: Rollout, devices: tuple[str, ...]) -> ev.OffersWritten | ev.RestoresWritten:
    """The event that records writes of the rollout's present state."""
    return ev.OffersWritten(devices=devices) if rollout.rollback is None else ev.RestoresWritten(devices=devices)


def _spare_untouched(draft: _Draft) -> None:
    """Leave devices alone that the offer never reached, so that their entry still is what an earlier rollout wrote."""
    untouched = tuple(
        device
        for device in draft.rollout.opened_devices
        if draft.rollout.attempt(device).written_at is None
        and draft.rollout.restore(device) == Attempt()
        and (observation := draft.observations.get(device)) is not None
        and not _is_touched(draft.rollout, observation)
    )
    if untouched:
        draft.emit(ev.DevicesSpared(devices=untouched))


def _is_touched(rollout: Rollout, observation: DeviceObservation) -> bool:
    desired = observation.desired
    report = observation.report
    asked = isinstance(desired, dict) and desired.get("rollout") == rollout.plan.id
    removed = rollout.plan.devices[observation.device_id].offer is None and desired is None
    return asked or removed or (report is not None and report.rollout == rollout.plan.id)


def _give_up_silent(draft: _Draft) -> None:
    """Only a device that was looked at just now is silent; otherwise it may have spoken while nobody listened."""
    rollout = draft.rollout
    silent = tuple(
        device
        for device in rollout.opened_devices
        if not (attempt := _current_attempt(rollout, device)).is_decided
        and attempt.written_at is not None
        and device in draft.observations
        and draft.now >= deadline(rollout, attempt.written_at, _waits_until(attempt))
    )
    if silent:
        draft.emit(ev.DevicesLost(devices=silent))


def deadline(rollout: Rollout, written_at: datetime, waits_until: datetime | None = None) -> datetime:
    """When a device that was asked at `written_at` is given up. A resumed rollout gives everyone the full time.

    A device that waits for its update window says until when, and has the full time from then on; but no device is
    waited for longer than a window can be away.
    """
    start = written_at if rollout.resumed_at is None else max(written_at, rollout.resumed_at)
    if waits_until is not None:
        start = max(start, min(waits_until, start + DEFERRAL_MAX))
    return start + timedelta(seconds=rollout.plan.terms.timeout_s)


def _waits_until(attempt: Attempt) -> datetime | None:
    said = attempt.report.deferred_until if attempt.report is not None else None
    try:
        instant = datetime.fromisoformat(said) if said is not None else None
    except ValueError:
        return None
    return instant if instant is not None and instant.tzinfo is not None else None


def _judge_wave(draft: _Draft, wave: Wave) -> None:
    gate = draft.rollout.plan.terms.gate
    if wave.state not in (WaveState.PASSED, WaveState.STOPPED):
        stop = evaluate(gate, draft.rollout.evidence(), is_soak_over=True)
        if stop.verdict == "stop":
            draft.emit(ev.WaveDecided(wave=wave.number, decision=stop))
        else:
            _advance_wave(draft, wave)
    wave = draft.rollout.waves[wave.number - 1]
    if wave.state is WaveState.STOPPED:
        _after_stop(draft, wave)
    elif wave.state is WaveState.PASSED:
        is_last = wave.number == len(draft.rollout.waves)
        draft.emit(ev.RolloutCompleted() if is_last else ev.WaveOpened(wave=wave.number + 1))


def _advance_wave(draft: _Draft, wave: Wave) -> None:
    """Move the open wave along opening → soaking → deciding → passed as far as evidence and time allow."""
    gate = draft.rollout.plan.terms.gate
    is_offered = all(
        (attempt := draft.rollout.attempt(device)).written_at is not None or attempt.is_decided
        for device in draft.rollout.opened_devices
    )
    if wave.state is WaveState.OPENING and is_offered and is_enough(gate, draft.rollout.evidence()):
        draft.emit(ev.SoakStarted(wave=wave.number))
        wave = draft.rollout.waves[wave.number - 1]
    if wave.state is WaveState.SOAKING:
        started_at = wave.soak_started_at
        assert started_at is not None
        if draft.now >= started_at + timedelta(seconds=gate.soak_s):
            draft.emit(ev.SoakEnded(wave=wave.number))
            wave = draft.rollout.waves[wave.number - 1]
    if wave.state is WaveState.DECIDING:
        decision = evaluate(gate, draft.rollout.evidence(), is_soak_over=True)
        if decision.verdict == "advance":
            draft.emit(ev.WaveDecided(wave=wave.number, decision=decision))


def _after_stop(draft: _Draft, wave: Wave) -> None:
    assert wave.decision is not None
    reason = "; ".join(wave.decision.reasons)
    if draft.rollout.plan.kind == "rollback" and wave.number == len(draft.rollout.waves):
        _end_rollback(draft)
    elif draft.rollout.plan.terms.on_stop == "pause":
        draft.emit(ev.RolloutPaused(cause="gate", reason=reason))
    else:
        draft.emit(rollback_event(draft.rollout, draft.observations, cause="gate", reason=reason))


def _end_rollback(draft: _Draft) -> None:
    """A way back that fails on some devices still goes on to all of them, and then names those it failed on."""
    outcomes = {device: draft.rollout.attempt(device) for device in draft.rollout.opened_devices}
    if all(attempt.is_decided for attempt in outcomes.values()):
        not_restored = tuple(device for device, attempt in outcomes.items() if attempt.outcome != "committed")
        draft.emit(ev.RollbackEnded(not_restored=not_restored))


def rollback_event(
    rollout: Rollout,
    observations: Observations,
    *,
    cause: ev.StopCause,
    reason: str,
    targets: Mapping[str, ReleaseContent | None] | None = None,
) -> ev.RollbackStarted:
    """Take the release back from every device of the opened waves, at one generation above all that was seen."""
    seen = max((observation.generation_max for observation in observations.values()), default=0)
    devices = rollout.opened_devices
    chosen = {device: rollout.plan.restore(device) for device in devices} if targets is None else targets
    return ev.RollbackStarted(
        cause=cause,
        reason=reason,
        # The plan reserved the generation after its own.
        generation=max(rollout.plan.generation, seen) + 1,
        epoch=rollout.epoch + 1,
        targets={device: content.key if content else None for device, content in chosen.items()},
        contents={
            content.key: content
            for content in chosen.values()
            if content is not None and content.key not in rollout.plan.contents
        },
    )


def _write_offers(draft: _Draft) -> None:
    rollout = draft.rollout
    for device in rollout.opened_devices:
        if len(draft.writes) == WRITES_PER_TICK_MAX:
            return
        attempt = _current_attempt(rollout, device)
        observation = draft.observations.get(device)
        if attempt.written_at is not None or attempt.is_decided or observation is None or not observation.exists:
            continue
        entry = desired_entry(rollout, device, draft.now)
        draft.writes.append(TwinWrite(device, rollout.plan.model, entry, observation.etag))


def desired_entry(rollout: Rollout, device: str, now: datetime) -> dict[str, Any] | None:
    """The device's entry in ``desired.models`` for the offer in force; None takes the model away."""
    content = rollout.plan.offer(device) if rollout.rollback is None else rollout.rollback.target(device)
    if content is None:
        return None
    aim = aim_of(rollout, device)
    valid_s = rollout.plan.terms.offer_valid_s
    return Release(
        generation=aim.generation,
        rollout=aim.rollout,
        epoch=aim.epoch,
        version=content.version,
        format=content.format,
        digest=content.digest,
        size_bytes=content.size_bytes,
        target=content.target,
        golden=content.golden,
        processing=content.processing,
        # What a device goes back to ran there before.
        requires=content.requires if rollout.rollback is None else None,
        delta=content.delta,
        trial=_trial(rollout.plan, is_rollback=rollout.rollback is not None),
        not_after=None if valid_s is None else (now + timedelta(seconds=valid_s)).isoformat(),
        # The way back waits for no window: what it takes back is running now.
        urgent=rollout.plan.terms.urgent or rollout.rollback is not None,
    ).to_wire()


def _trial(plan: RolloutPlan, *, is_rollback: bool) -> TrialTerms:
    return plan.terms.trial_of_rollback() if is_rollback else plan.terms.trial
