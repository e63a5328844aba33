"""Everything at once, by seed: a hub that loses words and acknowledgements, cuts, clocks that jump, bad releases.

Then the world heals, and the device has to arrive: on the newest release, with every reading delivered. A seed that
fails is run again alone by ``SLIPWAY_SEEDS=8472-8472``; more of them by ``SLIPWAY_SEEDS=1-1000``.
"""

import asyncio
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from device_agent.errors import LinkError
from simulators.kernel import sqlite_vfs
from simulators.kernel.disk import Tree
from simulators.kernel.recording import Recording, recording, write_tree
from tests.simulation.agent.crash_runs import Judgement
from tests.simulation.agent.small_world import ENDS, Weather, World, item
from tests.simulation.agent.whole_agent import Device, Running, wiped

FIRST, LAST = (int(number) for number in os.environ.get("SLIPWAY_SEEDS", "1-8").split("-"))
# Failed tests that once were; they run for ever.
KNOWN: tuple[int, ...] = ()
KINDS = [kind for kind in ENDS if kind != "large"]
YEAR_S = 365 * 86_400.0

pytestmark = [
    pytest.mark.skipif(sqlite_vfs.library() is None, reason="libsqlite3 is linked into _sqlite3 and cannot be watched"),
    pytest.mark.timeout(120),
]


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Storm(Weather):
    """Words are late, or do not arrive, or arrive and their acknowledgement does not."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._loss, self._delay_s = rng.choice([0.0, 0.05, 0.2]), rng.choice([0.0, 0.5, 3.0])

    async def before(self, what: str) -> None:
        await self._pass(what)

    async def after(self, what: str) -> None:
        await self._pass(what)

    async def _pass(self, what: str) -> None:
        if self._rng.random() < 0.3:
            await asyncio.sleep(self._rng.random() * self._delay_s)
        if self._rng.random() < self._loss:
            raise LinkError(f"{what} was lost.")


class PowerCutError(Exception):
    """What the disk kept, and how much had happened in the world."""

    def __init__(self, tree: Tree, events: int) -> None:
        super().__init__("the power is gone")
        self.tree = tree
        self.events = events


@dataclass
class SeededLife:
    seed: int
    place: Path
    generation: int = 0
    cuts: int = 0
    rng: Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = Random(f"{self.seed}/agent")
        self.storm = Storm(Random(f"{self.seed}/line"))

    def live(self) -> World:
        world = World(weather=self.storm)
        device = Device(wiped(self.place / "disk"), world, life=f"{self.seed}-")
        for _ in range(self.rng.randint(2, 5)):
            with recording(device.root) as record:
                world.noted = record.note
                try:
                    device.boot(lambda running, record=record: self._some_time(running, record))
                    record.check()
                    continue
                except PowerCutError as cut:
                    left, events = cut.tree, cut.events
            self.cuts += 1
            offset_s = world.wall_offset_s
            world = World(history=world.history[:events], weather=self.storm, wall_offset_s=offset_s)
            write_tree(left, wiped(device.root))
            device.world = world
        return self._healed(device, world)

    def _healed(self, device: Device, world: World) -> World:
        world.weather = None
        self.generation += 1
        world.offer(item(self.generation))
        Judgement(device, len(world.history), 1).pass_()
        return world

    async def _some_time(self, running: Running, record: Recording) -> None:
        """Half of the times it ends in a cut of power, whatever is going on at that moment."""
        rng, world = self.rng, running.world
        for _ in range(rng.randint(1, 5)):
            match rng.choice(["offer", "offer", "offer", "clock", "line", "shelf", "wait"]):
                case "offer":
                    self.generation += 1
                    world.offer(item(self.generation, rng.choice(["good", *KINDS])))
                case "clock":
                    world.wall_offset_s += rng.choice([-YEAR_S, YEAR_S, -3600.0, 3600.0])
                case "line":
                    world.cut_all_links()
                case "shelf":
                    world.is_shelf_up = not world.is_shelf_up
            await asyncio.sleep(rng.choice([0.01, 0.3, 2.0, 5.0]))
        world.is_shelf_up = True
        if rng.random() < 0.6:
            state = rng.choice(list(record.disk.crash_states(rng, 2)))
            raise PowerCutError(state.tree, len(world.history))


@pytest.mark.parametrize("seed", [*KNOWN, *range(FIRST, LAST + 1)])
def test_when_the_storm_is_over_the_device_arrives(seed, place):
    life = SeededLife(seed, place)
    world = life.live()
    assert world.report["generation"] == life.generation
    assert not world.missing


def test_a_seed_tells_the_same_story_twice(place):
    first, second = (SeededLife(2, place).live().history for _ in range(2))
    assert [type(event).__name__ for event in first] == [type(event).__name__ for event in second]
    assert len(first) > 20
