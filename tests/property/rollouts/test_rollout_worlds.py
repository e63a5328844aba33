"""Worlds drawn at random: devices that commit, fail, lie, go silent or repeat themselves, operators who interfere, and
controllers killed between any two events and on either side of any twin write.

The checkers look at the hub's twins, the devices and the log, and share nothing with the code that decides.
"""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_worlds import MODEL, SCRIPTS, Killed, ScriptedDevice, World, terms

from cloud_registry.core.rollout.events import WaveDecided, WaveOpened
from cloud_registry.core.rollout.state import Rollout
from cloud_registry.errors import ConflictError, GateRefusedError
from cloud_registry.service.rollouts import RollbackRequest

WORLDS = settings(max_examples=50)
TICKS_MAX = 400


@dataclass(frozen=True)
class Story:
    """What is drawn: the fleet, the rollout, what operators do and when controllers die."""

    scripts: tuple[str, ...]
    has_version_before: bool
    waves: str
    terms: dict[str, Any]
    kills: tuple[int, ...] = ()
    actions: dict[int, str] = field(default_factory=dict)


@st.composite
def stories(draw, *, kills: bool = False, actions: bool = False) -> Story:
    # Half the worlds are mostly healthy, or no rollout would ever pass its first wave.
    scripts = st.sampled_from(sorted(SCRIPTS))
    if draw(st.booleans()):
        scripts = st.sampled_from(["commits", "commits at once", "repeats itself", "repeats old news"]) | scripts
    return Story(
        scripts=tuple(draw(st.lists(scripts, min_size=1, max_size=7))),
        has_version_before=draw(st.booleans()),
        waves=draw(st.sampled_from(["100%", "1,100%", "1,50%,100%", "2,4,100%", "34%,67%,100%"])),
        terms={
            "max_failures": draw(st.sampled_from(["0", "1", "2", "25%", "50%"])),
            "soak_s": draw(st.sampled_from([0.0, 5.0])),
            "on_stop": draw(st.sampled_from(["rollback", "rollback", "pause"])),
            "timeout_s": draw(st.sampled_from([20.0, 60.0])),
        },
        kills=tuple(draw(st.lists(st.integers(1, 25), max_size=8))) if kills else (),
        actions=(
            draw(
                st.dictionaries(
                    st.integers(0, 30),
                    st.sampled_from(["pause", "resume", "override", "abort", "rollback"]),
                    max_size=5,
                )
            )
            if actions
            else {}
        ),
    )


def build(story: Story) -> World:
    devices = [ScriptedDevice(f"dev-{n}", scripts={2: script}) for n, script in enumerate(story.scripts)]
    world = World(devices)
    if story.has_version_before:
        world.install(1)
    return world


class Checkers:
    """Watches every twin write, and the log and the devices at the end."""

    def __init__(self, world: World, rollout_id: str) -> None:
        self.world = world
        self.rollout_id = rollout_id
        self.first_write = len(world.hub.writes)
        patch = world.hub.patch_desired

        def checked(device_id: str, module_id: str, change: dict[str, Any], etag: str = "") -> None:
            self.before_write(device_id, change["models"][MODEL])
            patch(device_id, module_id, change, etag)

        world.hub.patch_desired = checked  # type: ignore[method-assign]

    def before_write(self, device: str, entry: dict[str, Any] | None) -> None:
        events = [record.event for record in self.world.log.read(self.rollout_id)]
        opened = {event.wave for event in events if isinstance(event, WaveOpened)}
        plan = events[0].plan
        assert plan.devices[device].wave in opened, "a twin was written before the intent was stored"
        if entry is not None:
            made = [entry["generation"] for written, entry in self.writes() if written == device and entry is not None]
            assert entry["generation"] > max(made, default=0), "an offer went back, or was made twice"

    def writes(self) -> list[tuple[str, dict[str, Any] | None]]:
        return self.world.hub.writes[self.first_write :]

    def at_the_end(self, rollout: Rollout) -> None:
        self._waves_open_after_their_gates(rollout)
        self._writes_are_few(rollout)
        for device in self.world.hub.devices.values():
            assert device.history == sorted(set(device.history)), "a device's generation fell"
        touched = {device for device, _ in self.writes()}
        assert touched <= set(rollout.opened_devices)
        if rollout.state.value == "completed":
            judged = len(rollout.opened_devices) - len(rollout.forgiven)
            needed = rollout.plan.terms.gate.needed(judged) if judged else 0
            assert sum(version == 2 for version in self.world.hub.running().values()) >= needed
        if rollout.state.value == "rolledBack":
            before = 1 if rollout.plan.restore(rollout.opened_devices[0]) else None
            assert set(self.world.hub.running().values()) <= {before}

    def _waves_open_after_their_gates(self, rollout: Rollout) -> None:
        passed: set[int] = {0}
        for record in self.world.log.read(self.rollout_id):
            if isinstance(record.event, WaveDecided) and record.event.decision.verdict == "advance":
                evidence = record.event.decision.evidence
                assert evidence.committed + evidence.forgiven > 0, "no evidence advanced"
                passed.add(record.event.wave)
            elif isinstance(record.event, WaveOpened):
                assert record.event.wave - 1 in passed, "a wave opened before the gate of the one before it"

    def _writes_are_few(self, rollout: Rollout) -> None:
        writes = self.writes()
        kinds = {(device, entry["generation"] if entry else None) for device, entry in writes}
        assert len(writes) <= 2 * len(kinds)
        assert len(writes) == len(kinds), "a twin was written twice with the same offer"


def run(story: Story, *, kills: tuple[int, ...] = ()) -> tuple[World, Rollout]:
    """The story to its end: a dead controller is replaced at once, a rollout that waits for a person is taken back."""
    world = build(story)
    started = world.start(2, waves=story.waves, terms=terms(**story.terms))
    checkers = Checkers(world, started.plan.id)
    fuses = list(kills)
    _set_fuse(world, fuses)
    for tick in range(TICKS_MAX):
        _act(world, started.plan.id, story.actions.get(tick))
        rollout = _tick(world, started.plan.id, fuses)
        if rollout.is_ended:
            checkers.at_the_end(rollout)
            return world, rollout
        if tick > 40 and rollout.state.value == "paused":
            world.log.fuse.blows_at = None
            world.service.rollback(started.plan.id, RollbackRequest())
        world.pass_time()
    raise AssertionError(f"the rollout never ended: {rollout.state.value}")


def _set_fuse(world: World, fuses: list[int]) -> None:
    world.log.fuse.burnt = 0
    world.log.fuse.blows_at = fuses.pop(0) if fuses else None


def _tick(world: World, rollout_id: str, fuses: list[int]) -> Rollout:
    while True:
        try:
            return world.service.tick(rollout_id).rollout
        except Killed:
            _set_fuse(world, fuses)
            # The same owner: another one would wait for the lease first, and time would pass.
            world.controllers -= 1
            world.new_controller()


def _act(world: World, rollout_id: str, action: str | None) -> None:
    if action is None:
        return
    service, fuse = world.service, world.log.fuse
    blows_at, fuse.blows_at = fuse.blows_at, None
    try:
        match action:
            case "pause":
                service.pause(rollout_id)
            case "resume":
                service.resume(rollout_id)
            case "override":
                service.resume(rollout_id, "accepted")
            case "abort":
                service.abort(rollout_id)
            case "rollback":
                service.rollback(rollout_id, RollbackRequest())
    except (ConflictError, GateRefusedError):
        pass
    finally:
        fuse.blows_at = blows_at


def settled(world: World, rollout: Rollout) -> dict[str, Any]:
    """What must not depend on who died when."""
    return {
        "state": rollout.state.value,
        "running": world.hub.running(),
        "desired": {device: twin.desired for device, twin in world.hub.twins.items()},
        "touched": sorted(rollout.opened_devices),
        "writes": sorted(device for device, _ in world.hub.writes),
    }


@WORLDS
@given(stories())
def test_every_world_ends_and_breaks_no_rule(story):
    run(story)


@WORLDS
@given(stories(kills=True))
def test_killed_controllers_change_nothing(story):
    assert settled(*run(story, kills=story.kills)) == settled(*run(story))


@WORLDS
@given(stories(kills=True, actions=True))
def test_operators_at_any_moment_break_no_rule(story):
    run(story, kills=story.kills)


EXHAUSTIVE = {
    "two waves to completion": Story(("commits",) * 4, True, "1,100%", {"soak_s": 2.0, "timeout_s": 30.0}),
    "stopped in the second wave and taken back": Story(
        ("commits", "commits", "reverts", "commits at once", "is silent"), True, "2,100%", {"timeout_s": 20.0}
    ),
    "taken back to nothing": Story(("commits", "fails"), False, "100%", {"timeout_s": 20.0}),
}


def test_killed_at_every_single_point_of_three_stories():
    points = 0
    for story in EXHAUSTIVE.values():
        world, rollout = run(story)
        calm, burnt = settled(world, rollout), world.log.fuse.burnt
        for point in range(1, burnt + 1):
            assert settled(*run(story, kills=(point,))) == calm, f"killed at point {point}"
        points += burnt
    print(f"controllers killed at {points} points, all ended alike")
    assert points > 60
