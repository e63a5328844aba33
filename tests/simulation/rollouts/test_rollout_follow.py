"""Staying with a rollout in the foreground, on a clock that moves by hand."""

from collections.abc import Callable

from rollout_worlds import World, fleet, terms

from cloud_registry.cli.rollout_follow import follow
from cloud_registry.core.rollout.state import Rollout


class Screen:
    def __init__(self) -> None:
        self.states: list[str] = []
        self.notes: list[str] = []

    def show(self, rollout: Rollout) -> None:
        self.states.append(rollout.state.value)

    def note(self, text: str) -> None:
        self.notes.append(text)


class TurningClock:
    """Each sleep lets the world turn once, and something may happen to it."""

    def __init__(self, world: World, happen: Callable[[int], None]) -> None:
        self.world = world
        self.happen = happen
        self.turns = 0

    def now(self):
        return self.world.clock.now()

    def sleep(self, duration_s: float) -> None:
        self.turns += 1
        assert self.turns < 500, "it never ended"
        self.happen(self.turns)
        self.world.pass_time()


def test_a_hub_that_goes_away_is_told_once_and_waited_for():
    world, screen = World(fleet(*["commits"] * 3)), Screen()
    started = world.start(2, waves="1,100%", terms=terms(timeout_s=100))

    def outage(turn: int) -> None:
        world.hub.is_down = 2 <= turn < 30

    ended = follow(world.service, started.plan.id, screen, TurningClock(world, outage), may_drive=True)
    assert ended.state.value == "completed"
    assert screen.notes == ["the hub is down. Trying again."]


def test_a_watcher_does_not_drive_and_says_when_nobody_does():
    world, screen = World(fleet("commits")), Screen()
    started = world.start(2, terms=terms())
    driver, watcher = world.service, world.new_controller()

    def drive_late(turn: int) -> None:
        if turn > 20:
            driver.tick(started.plan.id)

    ended = follow(watcher, started.plan.id, screen, TurningClock(world, drive_late), may_drive=False)
    assert ended.state.value == "completed"
    assert screen.notes == ["Nobody drives r-0001. Drive it with: slipway serve, or slipway rollout resume r-0001"]
    assert screen.states[0] == "planned"


def test_a_gate_that_pauses_ends_the_watch_and_an_operator_who_pauses_does_not():
    world, screen = World(fleet(*["fails"] * 3)), Screen()
    started = world.start(2, waves="1,100%", terms=terms(on_stop="pause", soak_s=5))

    def lunch(turn: int) -> None:
        if turn == 1:
            world.service.pause(started.plan.id)
        if turn == 50:
            world.service.resume(started.plan.id)

    clock = TurningClock(world, lunch)
    paused = follow(world.service, started.plan.id, screen, clock, may_drive=True)
    assert (paused.state.value, paused.pause_cause) == ("paused", "gate")
    assert clock.turns >= 50


def test_two_in_the_foreground_share_the_work_when_one_goes():
    world, screen = World(fleet(*["commits"] * 4)), Screen()
    started = world.start(2, waves="1,2,100%", terms=terms(soak_s=3))
    first = world.service
    first.tick(started.plan.id)
    second = world.new_controller()
    # The first one is gone without a word; the second one takes over when its lease has run out.
    ended = follow(second, started.plan.id, screen, TurningClock(world, lambda _: None), may_drive=True)
    assert ended.state.value == "completed"
    assert len(world.hub.writes) == 4
