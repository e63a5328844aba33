"""The clock on the wall jumps a year, or stands still, in the middle of every phase: nothing gets stuck or goes faster.

Trials and retries go by the monotonic clock. Envelopes carry what the wall's clock says, so their times may jump; their
order is that of their sequence. Windows and expiry are asked of the wall's clock when they matter, see
tests/unit/agent/test_deferral_rules.py.
"""

import itertools
import logging
from datetime import UTC, datetime

import pytest

from manifests.twin import Phase
from tests.simulation.agent.small_world import World, item
from tests.simulation.agent.whole_agent import START, Device, wiped

YEAR_S = 365 * 86_400.0
PHASES = ("offered", "downloading", "verifying", "staged", "shadow", "switching", "trial", "committed")
JUMPS = {
    "a year ahead": YEAR_S,
    "a year back": -YEAR_S,
    "to 1970": -(START - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds(),
}


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def jumps_at(world: World, phase: str, jump) -> None:
    """Let the clock jump once, when generation 2 is stored as being in that phase."""

    def look(state) -> None:
        if state.phase == phase and state.offer is not None and state.offer.generation == 2:
            world.journalled = lambda state: None
            jump()

    world.journalled = look


async def one_update(running) -> dict:
    world = running.world
    world.offer(item(1))
    await running.until_reported("committed", 1)
    await running.until_received(3)
    world.offer(item(2))
    report = await running.until_reported("committed", 2)
    await running.until_received(3)
    return report


def check(world: World, elapsed_s: float, usual_s: float) -> None:
    assert elapsed_s == pytest.approx(usual_s, abs=2.0), "neither waited for nor skipped"
    assert 0.5 <= world.report["trial"]["seconds"] < 5
    sequences = [envelope["seq"] for envelope in world.received]
    assert sequences == sorted(set(sequences)) == list(range(1, len(sequences) + 1))
    assert not world.missing


@pytest.fixture(scope="module")
def usual_s(tmp_path_factory) -> float:
    device = Device(wiped(tmp_path_factory.mktemp("usual") / "disk"), World())
    device.boot(one_update)
    return device.elapsed_s


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("phase", PHASES)
def test_a_clock_that_jumps_in_the_middle_of_a_phase(place, usual_s, phase, jump):
    world = World()
    device = Device(wiped(place / "disk"), world)
    has_jumped = []

    def leap() -> None:
        world.wall_offset_s += JUMPS[jump]
        has_jumped.append(phase)

    jumps_at(world, phase, leap)
    device.boot(one_update)
    assert has_jumped == [phase]
    check(world, device.elapsed_s, usual_s)
    times = [datetime.fromisoformat(envelope["at"]) for envelope in world.received]
    leaps = [abs((after - before).total_seconds()) > 86_400 for before, after in itertools.pairwise(times)]
    assert leaps.count(True) == 1


@pytest.mark.parametrize("phase", PHASES)
def test_a_clock_that_stands_still_from_a_phase_on(place, usual_s, phase):
    world = World()
    device = Device(wiped(place / "disk"), world)
    jumps_at(world, phase, lambda: setattr(world, "is_wall_frozen", True))
    device.boot(one_update)
    assert world.is_wall_frozen
    check(world, device.elapsed_s, usual_s)


@pytest.mark.parametrize("jump", JUMPS)
def test_a_clock_that_jumps_between_two_starts_changes_nothing_of_what_is_known(place, jump):
    """A device without a battery for its clock begins in 1970 until the network tells it the time."""
    world = World()
    device = Device(wiped(place / "disk"), world)
    device.boot(one_update)
    world.wall_offset_s = JUMPS[jump]

    async def goes_on(running) -> None:
        await running.until(lambda: running.loaded == item(2).release.digest, "version 2 serves")
        before = len(world.received)
        await running.until_received(2)
        assert world.received[before]["seq"] == before + 1
        world.offer(item(3))
        await running.until_reported("committed", 3)

    device.boot(goes_on)
    assert not world.missing


def test_an_offer_is_judged_by_the_clock_of_its_moment_and_not_once_it_was_started(place):
    world = World()
    device = Device(wiped(place / "disk"), world)
    tomorrow = "2026-01-06T08:00:00Z"

    async def script(running) -> None:
        world.offer(item(1))
        await running.until_reported("committed", 1)
        # Started in time: the jump comes when it is on its way.
        jumps_at(world, Phase.DOWNLOADING, lambda: setattr(world, "wall_offset_s", YEAR_S))
        world.offer(item(2, not_after=tomorrow))
        await running.until_reported("committed", 2)
        world.offer(item(3, not_after=tomorrow))
        report = await running.until_reported("rejected", 3)
        assert report["error"]["code"] == "EXPIRED"
        # The clock is set right again: the cloud offers anew, and no grudge is borne.
        world.wall_offset_s = 0.0
        world.offer(item(4, version=3, not_after=tomorrow))
        await running.until_reported("committed", 4)

    device.boot(script)
