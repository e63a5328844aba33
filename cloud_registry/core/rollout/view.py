"""A rollout as other programs read it: the stable fields of `slipway rollout status --json`. Pure."""

from datetime import datetime
from typing import Any

from cloud_registry.core.rollout import events as ev
from cloud_registry.core.rollout.documents import RolloutPlan
from cloud_registry.core.rollout.state import Rollout, Wave


def plan_as_json(plan: RolloutPlan) -> dict[str, Any]:
    """A plan that has not started: its waves, what each device gets and goes back to, and who is left out."""
    return {
        "id": plan.id,
        "kind": plan.kind,
        "model": plan.model,
        "version": plan.version,
        "generation": plan.generation,
        "target": plan.target,
        "waves": [{"number": number, "devices": list(wave)} for number, wave in enumerate(plan.waves, start=1)],
        "devices": {device: _planned_device(plan, device) for device in plan.devices},
        "skipped": [skipped.to_wire() for skipped in plan.skipped],
        "terms": plan.terms.to_wire(),
    }


def status_as_json(rollout: Rollout) -> dict[str, Any]:
    """Where a rollout stands. Fields are only ever added; an instant is ISO 8601, absent things are null."""
    plan = rollout.plan
    return {
        "id": plan.id,
        "kind": plan.kind,
        "model": plan.model,
        "version": plan.version,
        "state": rollout.state.value,
        "reason": rollout.reason,
        "createdAt": _instant(rollout.created_at),
        "endedAt": _instant(rollout.ended_at),
        "generation": plan.generation if rollout.rollback is None else rollout.rollback.generation,
        "epoch": rollout.epoch,
        "origin": plan.origin,
        "target": plan.target,
        "sequence": rollout.sequence,
        "waves": [_wave(wave) for wave in rollout.waves],
        "evidence": rollout.evidence().to_wire(),
        "devices": {device: _device(rollout, device) for device in _in_wave_order(plan)},
        "skipped": [skipped.to_wire() for skipped in plan.skipped],
        "rollback": _rollback(rollout),
        "terms": plan.terms.to_wire(),
    }


def event_as_json(record: ev.RecordedEvent) -> dict[str, Any]:
    """One line of the history. The plan itself is left out: `plan` and `status` show it."""
    wire = record.event.to_wire()
    if isinstance(record.event, ev.RolloutPlanned):
        plan = record.event.plan
        wire = {"type": wire["type"], "model": plan.model, "version": plan.version, "devices": len(plan.devices)}
    return {"sequence": record.sequence, "at": record.at.isoformat(), **wire}


def _in_wave_order(plan: RolloutPlan) -> list[str]:
    return [device for wave in plan.waves for device in wave]


def _wave(wave: Wave) -> dict[str, Any]:
    return {
        "number": wave.number,
        "devices": list(wave.devices),
        "state": wave.state.value,
        "openedAt": _instant(wave.opened_at),
        "decidedAt": _instant(wave.decided_at),
        "decision": wave.decision.to_wire() if wave.decision else None,
    }


def _device(rollout: Rollout, device: str) -> dict[str, Any]:
    attempt = rollout.attempt(device)
    restore = rollout.restore(device)
    latest = restore.report or attempt.report
    forward = attempt.report
    before = rollout.plan.restore(device)
    loaded = latest.loaded_version if latest else (before.version if before else None)
    return {
        "wave": rollout.plan.devices[device].wave,
        "phase": latest.phase.value if latest and latest.phase else None,
        "outcome": attempt.outcome,
        "loadedVersion": loaded,
        "error": forward.error.to_wire() if forward and forward.error else None,
        "trial": forward.trial.to_wire() if forward and forward.trial else None,
        "restored": _is_restored(rollout, device),
    }


def _is_restored(rollout: Rollout, device: str) -> bool | None:
    """Whether the device is back on its older content; None where there is nothing to take back."""
    restore = rollout.restore(device)
    if rollout.rollback is None or restore.is_spared or device not in rollout.rollback.targets:
        return None
    return restore.outcome == "committed"


def _rollback(rollout: Rollout) -> dict[str, Any] | None:
    rollback = rollout.rollback
    if rollback is None:
        return None
    targets = {device: rollback.target(device) for device in rollback.targets}
    return {
        "cause": rollback.cause,
        "reason": rollback.reason,
        "generation": rollback.generation,
        "versions": {device: content.version if content else None for device, content in targets.items()},
    }


def _planned_device(plan: RolloutPlan, device: str) -> dict[str, Any]:
    offer, restore = plan.offer(device), plan.restore(device)
    return {
        "wave": plan.devices[device].wave,
        "format": offer.format if offer else None,
        "offer": offer.version if offer else None,
        "restore": restore.version if restore else None,
    }


def _instant(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()
