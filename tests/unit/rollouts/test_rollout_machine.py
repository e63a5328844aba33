"""The rollout's state table, and how a report is judged."""

import typing
from datetime import timedelta

import pytest
from msgspec.structs import replace
from rollout_worlds import MODEL, START, digest

from cloud_registry.core.gate import Decision, Evidence
from cloud_registry.core.rollout import events as ev
from cloud_registry.core.rollout.documents import DevicePlan, ReleaseContent, RolloutPlan
from cloud_registry.core.rollout.observation import Aim, DeviceObservation, judge
from cloud_registry.core.rollout.planning import PLANNERS, desired_entry, plan
from cloud_registry.core.rollout.state import ENDED_STATES, TRANSITIONS, HistoryError, RolloutState, fold
from manifests.errors import ManifestError
from manifests.twin import Deferral, Phase, ReportedModel

CONTENT = {
    digest(version): ReleaseContent(
        version=version, format="onnx", digest=digest(version), size_bytes=1, target=f"digits/{version}/model.onnx"
    )
    for version in (1, 2)
}
PLAN = RolloutPlan(
    id="r-0001",
    kind="release",
    model=MODEL,
    version=2,
    generation=5,
    module_id="slipway",
    target="*",
    waves=(("a",), ("b", "c")),
    devices={
        "a": DevicePlan(wave=1, offer=digest(2), restore=digest(1)),
        "b": DevicePlan(wave=2, offer=digest(2), restore=digest(1)),
        "c": DevicePlan(wave=2, offer=digest(2), restore=None),
    },
    contents=CONTENT,
    created_at=START.isoformat(),
)
DECISION = Decision(verdict="advance", reasons=("1 of 1 device committed",), evidence=Evidence(committed=1))
COMMITTED = ev.DeviceReport(outcome="committed", phase=Phase.COMMITTED, loaded_version=2, loaded_digest=digest(2))


def records(*events):
    return [
        ev.RecordedEvent(number, START + timedelta(seconds=number), event)
        for number, event in enumerate((ev.RolloutPlanned(plan=PLAN), *events), start=1)
    ]


FIRST_WAVE = (ev.RolloutStarted(), ev.WaveOpened(wave=1), ev.OffersWritten(devices=("a",)))
STOPPED = ev.WaveDecided(
    wave=1, decision=Decision(verdict="stop", reasons=("1 of 1 device failed",), evidence=Evidence(failed=1))
)
TAKEN_BACK = ev.RollbackStarted(cause="gate", reason="bad", generation=6, epoch=2, targets={"a": digest(1)})

HISTORIES = {
    "planned": ((), "planned", "waiting"),
    "opened": (FIRST_WAVE, "running", "opening"),
    "soaking": ((*FIRST_WAVE, ev.SoakStarted(wave=1)), "running", "soaking"),
    "deciding": ((*FIRST_WAVE, ev.SoakStarted(wave=1), ev.SoakEnded(wave=1)), "running", "deciding"),
    "passed": ((*FIRST_WAVE, ev.WaveDecided(wave=1, decision=DECISION)), "running", "passed"),
    "stopped by the gate, and taken back": ((*FIRST_WAVE, STOPPED, TAKEN_BACK), "rollingBack", "stopped"),
    "taken back": ((*FIRST_WAVE, STOPPED, TAKEN_BACK, ev.RollbackEnded()), "rolledBack", "stopped"),
    "taken back but for one": (
        (*FIRST_WAVE, STOPPED, TAKEN_BACK, ev.RollbackEnded(not_restored=("a",))),
        "rollbackIncomplete",
        "stopped",
    ),
    "paused by the gate and resumed: the wave goes on": (
        (*FIRST_WAVE, STOPPED, ev.RolloutPaused(cause="gate", reason="bad"), ev.RolloutResumed(forgiven=("a",))),
        "running",
        "opening",
    ),
    "paused while soaking and resumed: it still soaks": (
        (
            *FIRST_WAVE,
            ev.SoakStarted(wave=1),
            ev.RolloutPaused(cause="operator", reason="lunch"),
            ev.RolloutResumed(),
        ),
        "running",
        "soaking",
    ),
    "aborted before it began": ((ev.AbortRequested(reason="x"), ev.RolloutAborted()), "aborted", "waiting"),
    "completed": ((*FIRST_WAVE, ev.RolloutCompleted()), "completed", "opening"),
}


@pytest.mark.parametrize("story", HISTORIES)
def test_histories(story):
    events, state, wave_state = HISTORIES[story]
    rollout = fold(records(*events))
    assert (rollout.state.value, rollout.waves[0].state.value) == (state, wave_state)
    assert rollout.is_ended is (rollout.state in ENDED_STATES) is (rollout.ended_at is not None)


@pytest.mark.parametrize("story", HISTORIES)
def test_every_history_survives_its_wire_form(story):
    written = [(record, ev.event_from_wire(record.event.to_wire())) for record in records(*HISTORIES[story][0])]
    assert all(record.event == read for record, read in written)


def test_every_pair_of_state_and_event_is_decided():
    kinds = [kind for kind in typing.get_args(ev.RolloutEvent) if kind is not ev.RolloutPlanned]
    pairs = {(state, kind) for state in RolloutState for kind in kinds}
    refused = pairs - set(TRANSITIONS)
    assert set(TRANSITIONS) <= pairs
    assert (len(pairs), len(TRANSITIONS), len(refused)) == (153, 29, 124)
    # What has ended takes nothing more; what has not is planned for.
    assert {state for state, _ in TRANSITIONS} == set(RolloutState) - ENDED_STATES == set(PLANNERS)


@pytest.mark.parametrize("state", sorted(ENDED_STATES))
def test_an_ended_rollout_refuses_every_event(state):
    ended = next(fold(records(*events)) for events, ended_state, _ in HISTORIES.values() if ended_state == state.value)
    assert plan(ended, {}, START + timedelta(days=1)).events == ()
    with pytest.raises(HistoryError, match="cannot follow"):
        fold([*records(*next(e for e, s, _ in HISTORIES.values() if s == state.value)), _late(ended)])


def _late(ended):
    return ev.RecordedEvent(ended.sequence + 1, START, ev.WaveOpened(wave=2))


def test_a_log_without_a_plan_is_no_rollout():
    with pytest.raises(HistoryError, match="does not begin with its plan"):
        fold(records()[1:])


def test_an_event_of_a_newer_version_is_named_not_guessed():
    with pytest.raises(ManifestError, match="event that cannot be read"):
        ev.event_from_wire({"type": "moonLanded"})


VERSION_2 = digest(2)
AIM = Aim("r-0001", 5, 1, digest(2))


def report(phase, *, generation=5, rollout="r-0001", epoch=1, loaded=VERSION_2):
    return ReportedModel(
        generation=generation, rollout=rollout, epoch=epoch, phase=phase, version=2, loaded_digest=loaded
    )


JUDGED = {
    "committed with the digest loaded": (report(Phase.COMMITTED), "committed"),
    "thingsboard#10191: committed, but the old bytes run": (report(Phase.COMMITTED, loaded=digest(1)), "failed"),
    "committed, and the engine is just loading": (report(Phase.COMMITTED, loaded=None), "offered"),
    "deferred is not done": (report(Phase.DEFERRED, loaded=digest(1)), "offered"),
    "on trial is not done": (report(Phase.TRIAL), "offered"),
    "reverting is not the last word": (report(Phase.REVERTING), "offered"),
    "reverted": (report(Phase.REVERTED_QUARANTINED, loaded=digest(1)), "reverted"),
    "rejected": (report(Phase.REJECTED, loaded=digest(1)), "rejected"),
    "failed": (report(Phase.FAILED, loaded=digest(1)), "failed"),
    "an older generation says nothing about this one": (report(Phase.COMMITTED, generation=4), None),
    "another rollout at the same generation is not ours": (report(Phase.COMMITTED, rollout="r-0009"), None),
    "an older epoch is history": (report(Phase.COMMITTED, epoch=0), None),
    "a newer generation has taken the device over": (report(Phase.COMMITTED, generation=6), "failed"),
    "a device that never reported the model": (None, None),
}


@pytest.mark.parametrize("story", JUDGED)
def test_reports_are_judged(story):
    said, outcome = JUDGED[story]
    judged = judge(AIM, DeviceObservation("a", desired={}, report=said), None)
    assert (judged.outcome if judged else None) == outcome


def test_a_decided_outcome_gives_way_to_a_decided_one_only():
    working = DeviceObservation("a", desired={}, report=report(Phase.TRIAL))
    assert judge(AIM, working, COMMITTED) == COMMITTED
    reverted = DeviceObservation("a", desired={}, report=report(Phase.REVERTED_QUARANTINED, loaded=digest(1)))
    assert judge(AIM, reverted, COMMITTED).outcome == "reverted"


def test_a_removal_is_done_when_nothing_is_asked_for_and_nothing_is_loaded():
    gone = Aim("r-0001", 5, 1, None)
    assert judge(gone, DeviceObservation("a", desired={"generation": 4}), None) is None
    assert judge(gone, DeviceObservation("a"), None).outcome == "committed"
    loaded = DeviceObservation("a", report=report(Phase.COMMITTED, generation=4))
    assert judge(gone, loaded, None).outcome == "offered"
    failed = DeviceObservation("a", report=report(Phase.FAILED, loaded=None))
    assert judge(gone, failed, None).outcome == "committed"
    # On its way: it may load the model before it sees that it should not.
    for phase in (Phase.TRIAL, Phase.COMMITTED):
        on_its_way = DeviceObservation("a", report=report(phase, loaded=None))
        assert judge(gone, on_its_way, None).outcome == "offered"


@pytest.mark.parametrize("story", HISTORIES)
def test_planning_without_news_is_planning_nothing(story):
    rollout = fold(records(*HISTORIES[story][0]))
    now = START + timedelta(seconds=rollout.sequence)
    first = plan(rollout, {}, now)
    assert plan(first.rollout, {}, now).events == ()


TEN = START + timedelta(hours=10)
# A sentence -> (until when the device says it waits, hours after the start, whether it is lost by then).
WAITING = {
    "in the hours before its window it is waited for": (TEN.isoformat(), 9.9, False),
    "it has the full time from its window on": (TEN.isoformat(), 10.05, False),
    "a window that came and went without a word": (TEN.isoformat(), 10.1, True),
    "a window that is already open": (START.isoformat(), 0.1, True),
    "a window in a hundred years": (START.replace(year=2125).isoformat(), 24 * 8.1, True),
    "until it is idle, of which nobody knows when": (None, 0.1, True),
    "an instant that is none": ("tomorrow", 0.1, True),
    "an instant in no zone": (TEN.replace(tzinfo=None).isoformat(), 0.1, True),
}


@pytest.mark.parametrize("story", WAITING)
def test_a_device_that_says_until_when_it_waits_is_waited_for(story):
    until, hours, is_lost = WAITING[story]
    said = Deferral(reason="window", step="activation", message="Not now.", until=until)
    waiting = DeviceObservation("a", desired={}, report=replace(report(Phase.DEFERRED), deferred=said))
    events = plan(fold(records(*FIRST_WAVE)), {"a": waiting}, START + timedelta(hours=hours)).events
    assert (ev.DevicesLost(devices=("a",)) in events) is is_lost


def test_the_way_back_waits_for_no_window_and_a_release_does_unless_it_is_urgent():
    stopped = fold(records(*FIRST_WAVE, STOPPED, TAKEN_BACK))
    forward = fold(records(*FIRST_WAVE))
    urgent = replace(PLAN, terms=replace(PLAN.terms, urgent=True))
    hurried = fold([ev.RecordedEvent(1, START, ev.RolloutPlanned(plan=urgent)), *records(*FIRST_WAVE)[1:]])
    entries = [desired_entry(rollout, "a", START) for rollout in (stopped, forward, hurried)]
    assert [entry["urgent"] for entry in entries] == [True, False, True]


def test_a_device_is_lost_only_when_it_was_looked_at_and_had_said_nothing():
    rollout = fold(records(*FIRST_WAVE))
    late = START + timedelta(days=1)
    assert plan(rollout, {}, late).events == ()
    asked = DeviceObservation("a", desired={}, report=report(Phase.TRIAL))
    events = plan(rollout, {"a": asked}, late).events
    assert ev.DevicesLost(devices=("a",)) in events
    done = DeviceObservation("a", desired={}, report=report(Phase.COMMITTED))
    assert ev.DevicesLost(devices=("a",)) not in plan(rollout, {"a": done}, late).events
