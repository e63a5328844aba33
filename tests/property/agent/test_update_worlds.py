"""The update machine in generated worlds: whatever happens, what must hold holds, and devices come to rest."""

from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.core import events as e
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
from tests.property.agent.update_world import SHELF

TURNS = st.sampled_from(USUAL_TURNS + ODD_TURNS)
ITEMS = st.sampled_from([item for item in SHELF if item.is_good] * 3 + list(SHELF))
INDICES = st.integers(0, 40)
# Lists from Hypothesis are short unless told otherwise, and a short life has no second update in it.
TURNS_TAKEN = st.lists(st.tuples(TURNS, ITEMS, INDICES), min_size=25, max_size=70)
LIVES = st.tuples(st.sampled_from(KINDS), TURNS_TAKEN)


@settings(deadline=None, max_examples=120)
@given(LIVES)
def test_left_in_peace_a_device_comes_to_rest_and_serves_what_it_committed(life):
    is_at_rest(lived(*life))


@settings(deadline=None, max_examples=120)
@given(LIVES, st.sampled_from([item for item in SHELF if item.is_good]))
def test_whatever_failed_before_a_good_offer_of_a_higher_generation_is_committed(life, item):
    a_good_offer_is_committed(lived(*life), item)


@settings(deadline=None, max_examples=120)
@given(LIVES, st.sampled_from([item for item in SHELF if not item.is_good]))
def test_a_bad_offer_ends_with_a_reason_and_leaves_what_was_committed(life, item):
    a_bad_offer_changes_nothing(lived(*life), item)


@settings(deadline=None, max_examples=80)
@given(LIVES, st.sampled_from(SHELF), st.sampled_from(REACHED))
def test_a_withdrawal_is_carried_out_whenever_it_comes(life, item, phase):
    a_withdrawal_is_carried_out(lived(*life), item, phase)


@settings(deadline=None, max_examples=100)
@given(LIVES, st.sampled_from([item for item in SHELF if item.is_good]))
def test_a_withdrawal_that_is_taken_back_during_a_trial_does_not_happen(life, item):
    a_withdrawal_that_is_taken_back_does_not_happen(lived(*life), item)


@settings(deadline=None, max_examples=100)
@given(LIVES)
def test_rotten_bytes_of_what_serves_are_fetched_again(life):
    rotten_bytes_of_what_serves_are_fetched_again(lived(*life))


@settings(deadline=None, max_examples=100)
@given(LIVES)
def test_what_is_on_trial_or_committed_was_verified_and_judged(life):
    nothing_unjudged_stays(lived(*life))


@settings(deadline=None, max_examples=80)
@given(LIVES)
def test_a_replay_of_the_whole_twin_after_a_restart_changes_nothing(life):
    world = lived(*life)
    world.settle()
    world.crash(is_unclean=False)
    world.settle()
    before = world.state
    if before.offer is not None:
        world.follow(e.Desired(before.offer))
    assert world.state == before


def test_the_worlds_are_rich_enough_to_see_every_phase():
    """A property that no world reaches proves nothing."""
    seen = set()

    @settings(deadline=None, max_examples=150, derandomize=True, database=None)
    @given(LIVES)
    def live(life):
        seen.update(lived(*life).phases)

    live()
    assert seen >= set(Phase)


def test_a_journal_of_an_unknown_future_field_is_still_read():
    wire = {**ModelState(name="digits").to_wire(), "somethingNew": 1}
    assert ModelState.from_wire(wire) == ModelState(name="digits")
