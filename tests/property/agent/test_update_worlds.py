"""The update machine in generated worlds: whatever happens, what must hold holds, and devices come to rest."""

from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.core import events as e
from device_agent.core.model_state import ModelState
from device_agent.core.update import RESTING
from manifests.twin import Phase
from tests.property.agent.update_world import SHELF, Bytes, World, release

# Weighted towards answers: a world that only makes noise never gets as far as a trial.
TURNS = st.sampled_from(
    ["answer"] * 8
    + ["carry on"] * 8
    + ["bad luck"] * 2
    + ["offer newer"] * 4
    + [
        "offer expired",
        "offer a foreign format",
        "offer again",
        "offer older",
        "withdraw",
        "answer late",
        "answer twice",
        "crash",
        "crash",
        "stop cleanly",
        "rot",
    ]
)
ITEMS = st.sampled_from([item for item in SHELF if item.is_good] * 3 + list(SHELF))
INDICES = st.integers(0, 40)


def take_turn(world: World, turn: str, item: Bytes, index: int) -> None:
    highest = world.state.generation_highest
    match turn:
        case "answer":
            world.give()
        case "carry on":
            for _ in range(index % 9):
                world.give()
        case "bad luck":
            world.give(is_lucky=False)
        case "answer late":
            world.give_late(index)
        case "answer twice":
            world.repeat(index)
        case "offer newer":
            world.follow(e.Desired(release(item, highest + 1 + index % 3)))
        case "offer expired":
            world.follow(e.Desired(release(item, highest + 1, not_after="2025-02-28T23:59:59Z")))
        case "offer a foreign format":
            world.follow(e.Desired(release(item, highest + 1, format="tflite")))
        case "offer again":
            if world.state.offer is not None:
                world.follow(e.Desired(world.state.offer))
        case "offer older":
            world.follow(e.Desired(release(item, max(1, highest - index % 3))))
        case "withdraw":
            world.follow(e.Withdrawn())
        case "crash":
            world.crash()
        case "stop cleanly":
            world.crash(is_unclean=False)
        case "rot":
            world.rot(index)


def lived(turns: list[tuple[str, Bytes, int]]) -> World:
    world = World()
    for turn, item, index in turns:
        take_turn(world, turn, item, index)
    return world


# Lists from Hypothesis are short unless told otherwise, and a short life has no second update in it.
LIVES = st.lists(st.tuples(TURNS, ITEMS, INDICES), min_size=25, max_size=70)


@settings(deadline=None, max_examples=250)
@given(LIVES)
def test_left_in_peace_a_device_comes_to_rest_and_serves_what_it_committed(turns):
    world = lived(turns)
    world.settle()
    state = world.state
    assert state.phase in RESTING
    assert world.serving == (state.current.digest if state.current else None)
    assert state.serving == world.serving
    assert state.pending is None
    assert not state.is_withdrawal_pending


@settings(deadline=None, max_examples=250)
@given(LIVES, st.sampled_from([item for item in SHELF if item.is_good]))
def test_whatever_failed_before_a_good_offer_of_a_higher_generation_is_committed(turns, item):
    world = lived(turns)
    world.follow(e.Desired(release(item, world.state.generation_highest + 1)))
    world.settle()
    state = world.state
    assert state.phase is Phase.COMMITTED
    assert state.current == state.offer
    assert (state.offer.digest, state.offer.generation) == (item.digest, state.generation_highest)
    assert world.serving == item.digest
    assert state.problem is None


@settings(deadline=None, max_examples=250)
@given(LIVES, st.sampled_from([item for item in SHELF if not item.is_good]))
def test_a_bad_offer_ends_with_a_reason_and_leaves_what_was_committed(turns, item):
    world = lived(turns)
    world.settle()
    committed = world.state.current
    world.follow(e.Desired(release(item, world.state.generation_highest + 1)))
    world.settle()
    state = world.state
    assert state.phase in (Phase.FAILED, Phase.REVERTED_QUARANTINED)
    assert state.problem is not None
    assert state.current == committed
    assert world.serving == (committed.digest if committed else None)


@settings(deadline=None, max_examples=200)
@given(LIVES)
def test_what_is_on_trial_or_committed_was_verified_and_judged(turns):
    world = lived(turns)
    world.settle()
    current = world.state.current
    if current is not None:
        assert current.digest in world.sealed
        assert any(digest == current.digest for digest, _ in world.committed)
    assert set(world.disk) <= world.state.digests()


@settings(deadline=None, max_examples=150)
@given(LIVES)
def test_a_replay_of_the_whole_twin_after_a_restart_changes_nothing(turns):
    world = lived(turns)
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

    @settings(deadline=None, max_examples=300, derandomize=True, database=None)
    @given(LIVES)
    def live(turns):
        seen.update(lived(turns).phases)

    live()
    assert seen >= set(Phase) - {Phase.DEFERRED}


def test_a_journal_of_an_unknown_future_field_is_still_read():
    wire = {**ModelState(name="digits").to_wire(), "somethingNew": 1}
    assert ModelState.from_wire(wire) == ModelState(name="digits")
