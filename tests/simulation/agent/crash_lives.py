"""Lives of a device that are recorded and cut: what happens to it, in which order, over how many starts."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from tests.simulation.agent.small_world import Item, item
from tests.simulation.agent.whole_agent import Device, Running

Script = Callable[[Running], Awaitable[None]]


@dataclass(frozen=True)
class Life:
    """A name, and the script of each start; between two starts the device was switched off properly."""

    name: str
    scripts: tuple[Script, ...]
    settings: dict[str, str] = field(default_factory=dict)

    def live(self, device: Device) -> None:
        device.settings = dict(self.settings)
        for script in self.scripts:
            device.boot(script)


async def ended(running: Running, offered: Item) -> None:
    running.world.offer(offered)
    await running.until_reported(offered.end, offered.release.generation)


async def first(running: Running) -> None:
    await ended(running, item(1))


async def _update(running: Running) -> None:
    await ended(running, item(2))
    await running.until_received(2)


async def _bad_on_live_input(running: Running) -> None:
    await ended(running, item(2, "unsure"))
    await ended(running, item(3))


async def corrupt(running: Running) -> None:
    await ended(running, item(2, "corrupt"))


async def _bad_before_the_switch(running: Running) -> None:
    await ended(running, item(2, "corrupt"))
    await ended(running, item(3, "wrong answers"))
    await ended(running, item(4, "no model"))
    await ended(running, item(5))


async def _superseded(running: Running) -> None:
    """A newer offer during a download, and another one during a trial, which then waits."""
    world = running.world

    def supersede(target: str) -> None:
        if target == item(2).release.target:
            world.visited = lambda target: None
            world.offer(item(3))

    world.visited = supersede
    world.offer(item(2))
    await running.until(lambda: running.phase == "trial", "a trial")
    running.world.offer(item(4))
    await running.until_reported("committed", 4)


async def _rolled_back(running: Running) -> None:
    """The fleet goes back: older bytes under a newer generation, and then the same bytes once more."""
    await ended(running, item(2))
    await ended(running, item(3, version=1))
    await ended(running, item(4, version=1))


async def _withdrawn(running: Running) -> None:
    running.world.offer(None)
    await running.until(lambda: running.loaded is None, "nothing serves")
    await running.until(lambda: not running.world.report, "and the hub knows")
    await ended(running, item(2))


async def _rots(running: Running) -> None:
    """The bytes of the committed model go bad on the disk."""
    await ended(running, item(2))
    blob = running.device.state / "blobs" / "sha256" / item(2).release.digest[7:]
    if blob.is_file():
        content = blob.read_bytes()
        blob.write_bytes(hashlib.sha256(content).digest() + content[32:])


async def _repaired(running: Running) -> None:
    digest = item(2).release.digest
    await running.until(lambda: running.loaded == digest, "generation 2 is fetched again")
    await running.until(lambda: running.world.report.get("loadedDigest") == digest, "and the hub knows")


async def _offline(running: Running) -> None:
    """Readings wait for a hub that is away, longer than the outbox has room for."""
    world = running.world
    world.is_hub_up = False
    world.cut_all_links()
    before = running.agent._telemetry.counts.enqueued
    await running.until(lambda: running.agent._telemetry.counts.enqueued > before + 30, "30 readings wait")
    world.is_hub_up = True
    await running.until_received(25)


async def _many_readings(running: Running) -> None:
    """Enough transactions that SQLite moves its WAL into the database while it runs."""
    await running.until_received(300)


async def _deferred(running: Running) -> None:
    """Fetched ahead, and activated when the window opens."""
    running.world.offer(item(1))
    await running.until_reported("deferred", 1)
    await running.until_reported("committed", 1)


# One window opens soon after a life begins, the other soon after its device was started again.
WINDOWS = {
    "SLIPWAY_AGENT_UPDATE_WINDOW": "08:01-09:00,21:47-23:00",
    "SLIPWAY_AGENT_UPDATE_TIMEZONE": "UTC",
    "SLIPWAY_AGENT_UPDATE_LOOK_AGAIN_S": "5",
}

LIVES = (
    Life("first model", (first, _update)),
    Life("bad on live input", (first, _bad_on_live_input)),
    Life("bad before the switch", (first, _bad_before_the_switch)),
    Life("deferred", (_deferred, _update), WINDOWS),
    Life("superseded", (first, _superseded)),
    Life("rolled back", (first, _rolled_back)),
    Life("withdrawn", (first, _withdrawn)),
    Life("rotten and repaired", (first, _rots, _repaired)),
    Life("offline", (first, _offline), {"SLIPWAY_AGENT_TELEMETRY_MESSAGES_MAX": "20"}),
    Life("many readings", (first, _many_readings)),
)


def life(name: str) -> Life:
    return next(one for one in LIVES if one.name == name)
