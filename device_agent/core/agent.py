"""The agent as a whole: several models and one outbox. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from device_agent.core import events as e
from device_agent.core.model_state import ModelState
from device_agent.core.twin import DesiredReading, LoadedModel, Refusal, refused_model, reported_model
from device_agent.ports import Counts
from manifests.release import Release
from manifests.twin import (
    DroppedReadings,
    Phase,
    Progress,
    ReportedAgent,
    ReportedCollection,
    ReportedHealth,
    ReportedModel,
    ReportedSection,
    ReportedTelemetry,
    TrialEvidence,
)


def events_of(reading: DesiredReading, states: Mapping[str, ModelState]) -> dict[str, e.Event]:
    """What a desired section means for each model, by name.

    It is a level and not an edge: the same section read again gives the same events, which the update machines take as
    no-ops. A replay after a reconnect or a token renewal therefore changes nothing.
    """
    asked: dict[str, e.Event] = {name: e.Desired(release) for name, release in reading.offers.items()}
    gone: dict[str, e.Event] = {name: e.Withdrawn() for name in states if reading.withdraws(name)}
    return {**asked, **gone}


def with_factory(states: Mapping[str, ModelState], factory: Mapping[str, Release]) -> dict[str, ModelState]:
    """The journal with what the device is provisioned with now; a factory model that is gone stands in no more."""
    names = dict.fromkeys((*states, *factory))
    return {name: replace(states.get(name, ModelState(name=name)), factory=factory.get(name)) for name in names}


def digests_in_use(states: Iterable[ModelState]) -> frozenset[str]:
    """Every artifact that some model may still need: models may share bytes, so one alone must not sweep."""
    return frozenset().union(*(state.digests() for state in states))


def has_ever_committed(states: Iterable[ModelState]) -> bool:
    return any(state.current is not None for state in states)


def section(
    states: Mapping[str, ModelState],
    refusals: Mapping[str, Refusal],
    loaded: Mapping[str, LoadedModel],
    progress: Mapping[str, Progress],
    evidence: Mapping[str, TrialEvidence],
    agent: ReportedAgent,
    telemetry: ReportedTelemetry,
    health: ReportedHealth | None = None,
) -> dict[str, Any]:
    """The reported section as JSON values: a function of what is, so that any two reports of one state are equal."""
    models: dict[str, ReportedModel] = {}
    for name, state in states.items():
        entry = reported_model(state, loaded.get(name), progress.get(name), evidence.get(name))
        if entry is not None:
            models[name] = entry
    for name, refusal in refusals.items():
        known = states.get(name)
        rejected = refused_model(refusal, loaded.get(name))
        if rejected is not None and refusal.generation > (known.generation_highest if known else 0):
            models[name] = rejected
    wire = ReportedSection(models=models, agent=agent, telemetry=telemetry, health=health).to_wire()
    # Written even when empty, so that the last model's entry is removed by key and not by removing the map.
    wire.setdefault("models", {})
    wire.setdefault("telemetry", {})
    return wire


def reported_telemetry(counts: Counts, collection: ReportedCollection | None = None) -> ReportedTelemetry:
    by_cause = DroppedReadings(room=counts.dropped_room, age=counts.dropped_age, refused=counts.dropped_refused)
    return ReportedTelemetry(
        enqueued=counts.enqueued,
        acknowledged=counts.acknowledged,
        dropped=counts.dropped,
        dropped_by=by_cause if counts.dropped else None,
        collection=collection,
    )


def status(
    states: Mapping[str, ModelState],
    *,
    device: str,
    module: str,
    boot: str,
    is_running: bool,
    counts: Counts,
    health: ReportedHealth | None = None,
) -> dict[str, Any]:
    """What ``status`` prints and the direct method of that name answers. Field names are stable.

    `version` and `digest` are of the model that serves, or served last; `offeredVersion` and `generation` are of the
    offer that `phase` is about.
    """
    return {
        "device": device,
        "module": module,
        "boot": boot,
        "isRunning": is_running,
        "models": {
            name: _model_status(state)
            for name, state in states.items()
            if state.phase is not None or state.serving is not None
        },
        "telemetry": {
            "enqueued": counts.enqueued,
            "acknowledged": counts.acknowledged,
            "waiting": counts.waiting,
            "dropped": counts.dropped,
            "droppedBy": reported_telemetry(counts).to_wire().get("droppedBy", {}),
            "lastSequence": counts.last_sequence,
        },
        # Of a running agent only: it is in nobody else's memory.
        "health": health.to_wire() if health else None,
    }


def _model_status(state: ModelState) -> dict[str, Any]:
    offer, current = state.offer, state.current
    known = (current, offer, state.previous, *state.older, state.factory)
    releases = [release for release in known if release is not None]
    serving = next((release for release in releases if release.digest == state.serving), None)
    return {
        "version": serving.version if serving else None,
        "digest": serving.digest if serving else None,
        "format": serving.format if serving else None,
        # Nothing was asked for yet: what serves is what the device was provisioned with.
        "phase": str(state.phase) if state.phase is not None else "factory",
        "generation": offer.generation if offer else 0,
        "offeredVersion": offer.version if offer else None,
        "committedVersion": current.version if current else None,
        "deferred": state.deferred.to_wire() if state.deferred and state.phase is Phase.DEFERRED else None,
        "error": state.problem.to_wire() if state.problem else None,
    }
