"""Lives of a device: turns that a world takes, and what must hold at their end; for Hypothesis and planted faults."""

from datetime import timedelta
from typing import Literal

from msgspec.structs import replace

from device_agent.core import events as e
from device_agent.core.model_state import ModelState
from device_agent.core.update import RESTING
from manifests.twin import Phase
from tests.property.agent.update_world import FACTORY, PLENTY, Bytes, World, release

Kind = Literal["bare", "provisioned"]
KINDS: tuple[Kind, ...] = ("bare", "provisioned")
HOUR = timedelta(hours=1)
Turn = tuple[str, Bytes, int]

# Weighted towards answers: a world that only makes noise never gets as far as a trial.
USUAL_TURNS = (
    ["answer"] * 8
    + ["carry on"] * 8
    + ["carry on to a phase"] * 8
    + ["bad luck"] * 2
    + ["offer newer"] * 5
    + ["crash"] * 2
)
# Where something else is most worth trying, since much has to go well before.
REACHED = (
    Phase.DEFERRED,
    Phase.STAGED,
    Phase.SHADOW,
    Phase.SWITCHING,
    Phase.TRIAL,
    Phase.TRIAL,
    Phase.REVERTING,
    Phase.COMMITTED,
)
ODD_TURNS = [
    "offer expired",
    "offer for two hours",
    "offer urgently",
    "offer a foreign format",
    "offer again",
    "offer older",
    "withdraw",
    "answer late",
    "answer twice",
    "stop cleanly",
    "rot",
    "hours pass",
    "clock jumps",
    "hold back",
    "hold back",
    "calm down",
    "calm down",
    "look in vain",
    "disk fills",
    "disk fills",
    "ask for nothing and then again",
    "stop cleanly",
    "crash and crash again",
    "disk empties",
]


def lived(kind: Kind, turns: list[Turn]) -> World:
    world = World(state=ModelState(name="digits", factory=FACTORY if kind == "provisioned" else None))
    # As an agent does at its very first start.
    world.follow(e.Restarted(is_unclean=False))
    for turn, item, index in turns:
        take_turn(world, turn, item, index)
    return world


def take_turn(world: World, turn: str, item: Bytes, index: int) -> None:
    highest = world.generation_heard
    match turn:
        case "answer":
            world.give()
        case "carry on":
            for _ in range(index % 12):
                world.give()
        case "carry on to a phase":
            world.reach(REACHED[index % len(REACHED)])
        case "bad luck":
            world.give(is_lucky=False)
        case "look in vain":
            world.give(in_vain=True)
        case "answer late":
            world.give_late(index)
        case "answer twice":
            world.repeat(index)
        case "withdraw":
            world.follow(e.Withdrawn())
        case "ask for nothing and then again" if world.state.offer is not None:
            wanted = world.state.pending or world.state.offer
            world.follow(e.Withdrawn())
            world.follow(e.Desired(wanted))
        case "ask for nothing and then again":
            pass
        case "crash":
            world.crash()
        case "crash and crash again":
            for _ in range(2):
                world.reach(REACHED[index % len(REACHED)])
                world.crash()
        case "stop cleanly":
            world.crash(is_unclean=False)
        case "rot":
            world.rot(index)
        case "disk fills":
            # One for what is committed and one for what is new.
            world.room = 2
        case "disk empties":
            world.room = PLENTY
        case _ if turn.startswith("offer"):
            offer(world, turn, item, index, highest)
        case _:
            surround(world, turn, index)


def offer(world: World, turn: str, item: Bytes, index: int, highest: int) -> None:
    newer = highest + 1
    match turn:
        case "offer newer":
            world.follow(e.Desired(release(item, newer + index % 3)))
        case "offer urgently":
            world.follow(e.Desired(release(item, newer, urgent=True)))
        case "offer expired":
            world.follow(e.Desired(release(item, newer, not_after=later(world, -1))))
        case "offer for two hours":
            world.follow(e.Desired(release(item, newer, not_after=later(world, 2))))
        case "offer a foreign format":
            world.follow(e.Desired(release(item, newer, format="tflite")))
        case "offer again" if world.state.offer is not None:
            world.follow(e.Desired(world.state.offer))
        case "offer older":
            world.follow(e.Desired(release(item, max(1, highest - index % 3))))


def later(world: World, hours: float) -> str:
    return (world.now.replace(microsecond=0) + (hours * HOUR)).isoformat()


def surround(world: World, turn: str, index: int) -> None:
    match turn:
        case "hours pass":
            world.jump(days=index / 24)
        case "clock jumps":
            world.jump(days=365 if index % 2 else -365)
        case "hold back":
            held = (("busy", "The busy hook ended with 1."), ("is_metered", True), ("is_on_mains", False))
            setattr(world, *held[index % 3])
            world.battery_percent = (3.0, 12.0, 60.0)[index % 7 % 3]
        case "calm down":
            world.calm()
        case _:
            raise AssertionError(f"no world takes the turn {turn!r}")


# What must hold -------------------------------------------------------------------------------------------------------


def is_at_rest(world: World) -> None:
    world.settle()
    state = world.state
    assert state.phase in RESTING
    if state.current is not None:
        assert world.serving == state.serving == state.current.digest
    else:
        assert world.serving in (None, FACTORY.digest if state.factory else None)
    assert state.pending is None
    assert not state.is_withdrawal_pending
    assert state.generation_highest == world.generation_heard, "an offer was lost"
    if world.is_withdrawn:
        assert (state.phase, state.current) == (None, None), "a withdrawal was lost"
    elif world.generation_heard and not world.is_gone:
        assert state.phase is not None, "a withdrawal was not taken back"
        assert state.offer.generation == world.generation_heard, "an offer was lost"


def a_good_offer_is_committed(world: World, item: Bytes) -> None:
    """On a disk with room for what is committed and what is new: what else is kept has to give way."""
    world.room = 2
    world.follow(e.Desired(release(item, world.generation_heard + 1)))
    world.settle()
    state = world.state
    assert state.phase is Phase.COMMITTED
    assert state.current == state.offer
    assert (state.offer.digest, state.offer.generation) == (item.digest, world.generation_heard)
    assert world.serving == item.digest
    assert state.problem is None


def a_bad_offer_changes_nothing(world: World, item: Bytes) -> None:
    world.settle()
    committed = world.state.current
    world.follow(e.Desired(release(item, world.generation_heard + 1)))
    world.settle()
    state = world.state
    is_condemned = (item.digest, state.offer.generation) in world.condemned
    assert state.phase is (Phase.REVERTED_QUARANTINED if is_condemned else Phase.FAILED)
    assert is_condemned == (item.digest in state.quarantine and state.quarantine[item.digest] == state.offer.generation)
    assert state.problem is not None
    assert state.current == committed
    if committed is not None:
        assert world.serving == committed.digest


def a_withdrawal_is_carried_out(world: World, item: Bytes, phase: Phase) -> None:
    """In whatever phase it comes: nothing serves, and what a trial found out meanwhile changes nothing about it."""
    world.follow(e.Desired(release(item, world.generation_heard + 1)))
    world.calm()
    world.reach(phase)
    world.follow(e.Withdrawn())
    world.settle()
    state = world.state
    assert (state.phase, state.current, state.previous, state.older) == (None, None, None, ())
    assert (world.serving, world.disk) == (None, {})


def a_withdrawal_that_is_taken_back_does_not_happen(world: World, item: Bytes) -> None:
    world.settle()
    offer = release(item, world.generation_heard + 1)
    world.follow(e.Desired(offer))
    world.reach(Phase.TRIAL)
    assert world.state.phase is Phase.TRIAL or item.digest == (world.state.current and world.state.current.digest)
    if world.state.phase is Phase.TRIAL:
        world.follow(e.Withdrawn())
        world.follow(e.Desired(offer))
    world.settle()
    assert (world.state.phase, world.state.current) == (Phase.COMMITTED, offer)


def rotten_bytes_of_what_serves_are_fetched_again(world: World) -> None:
    """Even where the offer that found them rotten comes to nothing."""
    world.settle()
    current = world.state.current
    if current is None:
        return
    world.disk[current.digest] = False
    world.follow(e.Desired(replace(current, generation=world.generation_heard + 1, not_after=None)))
    world.give()
    world.give(is_lucky=False)
    world.settle()
    assert world.is_readable(current.digest)
    assert world.serving == current.digest


def nothing_unjudged_stays(world: World) -> None:
    world.settle()
    current = world.state.current
    if current is not None:
        assert current.digest in world.sealed
        assert any(digest == current.digest for digest, _ in world.committed)
    assert set(world.disk) <= world.state.digests()
