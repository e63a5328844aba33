"""Faults planted in the update machine, each of which the generated worlds must find.

A property suite is worth what it finds. Each fault below is one that a person could write: a guard left out, a row of
the table that leads elsewhere, a field forgotten. The machine as it is survives the same worlds.
"""

import random
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from device_agent.core import events as e
from device_agent.core import retention, update
from device_agent.core.model_state import ModelState
from manifests.twin import Phase
from tests.property.agent.lives import (
    KINDS,
    ODD_TURNS,
    REACHED,
    USUAL_TURNS,
    a_bad_offer_changes_nothing,
    a_good_offer_is_committed,
    a_withdrawal_is_carried_out,
    a_withdrawal_that_is_taken_back_does_not_happen,
    is_at_rest,
    lived,
    nothing_unjudged_stays,
    rotten_bytes_of_what_serves_are_fetched_again,
)
from tests.property.agent.update_world import SHELF, World

# A fault that so many lives do not show would not be found by the property tests in a day of commits either.
LIVES_MAX = 600
GOOD = [item for item in SHELF if item.is_good]
BAD = [item for item in SHELF if not item.is_good]
Plant = Callable[[pytest.MonkeyPatch], None]


def row(phase: update.Standing, kind: type[e.Event], handler: update.Handler) -> Plant:
    """One row of the table leads elsewhere."""
    return lambda patch: patch.setitem(update.TRANSITIONS, (phase, kind), handler)


def handler(name: str, instead: update.Handler) -> Plant:
    """A handler does something else, wherever the table names it or another handler calls it."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        proper = getattr(update, name)
        for key, value in update.TRANSITIONS.items():
            if value is proper:
                patch.setitem(update.TRANSITIONS, key, instead)
        patch.setattr(update, name, instead)

    return plant


def function(name: str, instead: Callable, owner: object = update) -> Plant:
    return lambda patch: patch.setattr(owner, name, instead)


def nothing(state, event, context):
    return state, ()


def accept_a_replay(state, event, context):
    if event.release.generation >= state.generation_highest:
        return update._begin(state, event.release, context)
    return state, ()


def commit_unproven(state, event, context):
    return update._commit(state, e.TrialPassed(state.ticket, None), context)


def take_any_answer(state, event, now, rules):
    key = (state.phase, type(event))
    if key in update.IGNORED:
        return state, ()
    return update.TRANSITIONS[key](state, event, update.Context(now, rules))


def fail_without_going_back(state, event, context):
    return update._rest(replace(state, phase=Phase.FAILED, problem=event.problem), context)


def take_for_right(state, event, context):
    return update._examined(state, e.ShadowPassed(state.ticket), context)


def count_every_end(restart):
    return lambda state, event, context: restart(state, e.Restarted(is_unclean=True), context)


def retry_for_ever(state, event, context):
    return update._resume(state, None, context)


def fetch_afresh_for_ever(state, event, context):
    return update._resume(replace(state, attempt=0), None, context)


def forget_the_way_back(state, offer, rules):
    return replace(state, current=offer, previous=None, older=())


def keep_one(state, offer, rules):
    return replace(proper_commit(state, offer, rules), older=())


def give_up_the_committed_one(state):
    return replace(state, current=None)


def begin_with_old_problem(state, offer, context):
    after, commands = proper_begin(state, offer, context)
    return replace(after, problem=state.problem or after.problem), commands


def without_factory(state):
    return tuple(item for item in proper_candidates(state) if item != state.factory)


def previous_first(state):
    return tuple(reversed(proper_candidates(state)))


def only_current(self):
    return frozenset(item.digest for item in (self.current, self.offer, self.pending) if item is not None)


proper_begin = update._begin
proper_candidates = update._candidates
proper_commit = retention.committed

FAULTS: dict[str, Plant] = {
    "answers with an old ticket are taken": function("step", take_any_answer),
    "a newer offer interrupts a trial": row(Phase.TRIAL, e.Desired, update._accept),
    "a newer offer interrupts a switch": row(Phase.SWITCHING, e.Desired, update._accept),
    "a withdrawal interrupts a trial": row(Phase.TRIAL, e.Withdrawn, update._withdraw),
    "what is offered during a trial is forgotten": handler("_remember", nothing),
    "a withdrawal during a trial is forgotten": handler("_remember_withdrawal", nothing),
    "a withdrawal that was taken back is carried out": function("_still_asked", lambda state, event: (state, ())),
    "a replay starts the update anew": handler("_accept", accept_a_replay),
    "an offer that waits is not replaced by a newer one": row(Phase.DEFERRED, e.Desired, nothing),
    "a download is not verified": row(Phase.DOWNLOADING, e.Downloaded, update._stage),
    "bytes that failed verification are loaded": row(Phase.VERIFYING, e.VerifyFailed, update._stage),
    "a wrong golden answer is taken for a right one": row(Phase.SHADOW, e.ShadowFailed, take_for_right),
    "a failed trial leaves the bad model serving": row(Phase.TRIAL, e.TrialFailed, fail_without_going_back),
    "a failed trial condemns nothing": function("_quarantined", lambda state: state),
    "a trial that a restart cut short is committed": row(Phase.TRIAL, e.Restored, commit_unproven),
    "deaths on trial are not counted": row(Phase.TRIAL, e.Restarted, update._restart),
    "deaths in shadow are not counted": row(Phase.SHADOW, e.Restarted, update._restart),
    "clean ends count as deaths": row(Phase.TRIAL, e.Restarted, count_every_end(update._restart_trial)),
    "a restart serves the older release first": function("_candidates", previous_first),
    "a restart forgets the factory model": function("_candidates", without_factory),
    "after a restart a staged model is loaded at any hour": row(
        Phase.STAGED, e.Restored, lambda state, event, context: update._load(update._served(state, event))
    ),
    "no moment is wrong": function("deferral", lambda *values: None),
    "an offer that waits never expires": function("is_expired", lambda offer, now: False),
    "an offer that waits is not looked at again": row(Phase.DEFERRED, e.SurroundingsSeen, nothing),
    "a restart ends the waiting": row(Phase.DEFERRED, e.Restored, update._stage),
    "a dead link is tried for ever": handler("_download_failed", retry_for_ever),
    "other bytes are fetched for ever": handler("_verify_failed", fetch_afresh_for_ever),
    "the way back is forgotten at a commit": function("committed", forget_the_way_back, retention),
    "only one release is kept": function("committed", keep_one, retention),
    "a full disk blocks every update": function("without_oldest", lambda state: None, retention),
    "a full disk costs the committed release": function("without_oldest", give_up_the_committed_one, retention),
    "a sweep deletes the way back": function("digests", only_current, ModelState),
    "an old problem is reported of a new offer": function("_begin", begin_with_old_problem),
    "bytes that rotted are not fetched again": function("_is_of_current", lambda state: False),
}


def end(world: World, number: int, chance: random.Random) -> None:
    match number % 6:
        case 0:
            a_good_offer_is_committed(world, chance.choice(GOOD))
        case 1:
            a_bad_offer_changes_nothing(world, chance.choice(BAD))
        case 2:
            a_withdrawal_is_carried_out(world, chance.choice(SHELF), chance.choice(REACHED))
        case 3:
            a_withdrawal_that_is_taken_back_does_not_happen(world, chance.choice(GOOD))
        case 4:
            rotten_bytes_of_what_serves_are_fetched_again(world)


def lives_until_found() -> int | None:
    """The number of the first life that breaks a promise, None where none does."""
    for number in range(1, LIVES_MAX + 1):
        chance = random.Random(f"life {number}")
        turns = [
            (chance.choice(USUAL_TURNS + ODD_TURNS), chance.choice(GOOD * 3 + list(SHELF)), chance.randrange(41))
            for _ in range(chance.randrange(25, 70))
        ]
        try:
            world = lived(chance.choice(KINDS), turns)
            end(world, number, chance)
            is_at_rest(world)
            nothing_unjudged_stays(world)
        except Exception:  # noqa: BLE001  a fault may show itself as any error of the machine
            return number
    return None


def test_the_machine_as_it_is_keeps_every_promise_in_all_these_lives():
    assert lives_until_found() is None


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch, record_property):
    FAULTS[fault](monkeypatch)
    found = lives_until_found()
    assert found is not None, f"{LIVES_MAX} lives saw nothing of it"
    record_property("lives", found)
