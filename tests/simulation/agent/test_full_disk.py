"""A disk that has no room, that fails, or that may only be read, from every single write of an update on.

Nothing is lost or half done: the old model serves, the verdict says why, and when the disk works again the device goes
on by itself, the next generation being taken as any other.
"""

import asyncio
import errno
import logging
import os
from unittest import mock

import pytest

from device_agent.adapters.file_slots import FileSlots
from device_agent.errors import StateError
from manifests.twin import Phase
from simulators.kernel import sqlite_vfs
from simulators.kernel.disk import Create, Write
from simulators.kernel.faults import Refusal, Room
from simulators.kernel.recording import recording
from tests.simulation.agent.small_world import NEVER_SERVES, World, item
from tests.simulation.agent.whole_agent import Device, wiped

IS_FULL_RUN = bool(os.environ.get("SLIPWAY_CRASH_FULL"))
# Every so manieth change of the update is the first that fails.
STRIDE = 1 if IS_FULL_RUN else 23
OUTAGE_S = 8.0
MIB = 1024 * 1024

pytestmark = pytest.mark.skipif(
    sqlite_vfs.library() is None, reason="libsqlite3 is linked into _sqlite3 and cannot be watched"
)


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def device(place) -> Device:
    """A device that has committed version 1 and is switched off."""
    made = Device(wiped(place / "disk"), World())

    async def first(running) -> None:
        running.world.offer(item(1))
        await running.until_reported("committed", 1)

    made.boot(first)
    return made


def nothing_is_lost(world: World) -> None:
    assert not world.missing
    assert world.dropped == 0
    assert {world.kind_of(envelope["version"]) for envelope in world.received} & NEVER_SERVES == set()


async def update_through(running, begin) -> None:
    """Offer version 2 to a disk that `begin` spoils, mend it after a while, and see the device arrive."""
    world, loop = running.world, asyncio.get_running_loop()
    await running.until_received(1)
    first = item(1).release.digest
    until_s = loop.time() + OUTAGE_S
    begin(lambda: loop.time() >= until_s)
    world.offer(item(2))
    while loop.time() < until_s:
        assert running.loaded in (first, item(2).release.digest), "something serves all the time"
        await running.passes(1)

    def is_decided() -> bool:
        report = world.report
        return report.get("generation") == 2 and report.get("phase") in ("committed", "failed")

    await running.until(is_decided, "generation 2 is decided")
    if world.report["phase"] == Phase.FAILED:
        assert world.report["loadedVersion"] == 1
        assert world.report["error"]["message"]
        world.offer(item(3, version=2))
        await running.until_reported("committed", 3)
    await running.until(lambda: not world.missing, "every reading arrives")


def changes_of_an_update(device: Device) -> int:
    with recording(device.root) as record:
        counted = record.before = Refusal(0, 0, lambda: True)
        device.boot(lambda running: update_through(running, lambda is_over: None))
    return counted.changes


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=lambda number: errno.errorcode[number])
def test_from_any_write_on_the_disk_refuses_for_a_while(device, place, number, capsys):
    import shutil

    shutil.copytree(device.root, place / "start")
    total, refused, codes = changes_of_an_update(device), 0, set()
    for nth in range(1, total + 1, STRIDE):
        root = wiped(place / "again")
        root.rmdir()
        shutil.copytree(place / "start", root)
        again = Device(root, device.world.after(len(device.world.history)), life="b")
        with recording(again.root) as record:

            def begin(is_over, record=record, nth=nth) -> None:
                record.before = Refusal(nth, number, is_over)

            again.boot(lambda running, begin=begin: update_through(running, begin))
            record.check()
        assert isinstance(record.before, Refusal)
        refused += record.before.refused > 0
        nothing_is_lost(again.world)
        codes |= {entry["error"]["code"] for entry in again.world.entries() if entry.get("error")}
    assert refused > 2
    if number == errno.ENOSPC:
        assert codes <= {"NO_SPACE"}
    with capsys.disabled():
        if IS_FULL_RUN:
            print(f"\n{errno.errorcode[number]}: refused from each of {refused} changes on; said {sorted(codes)}")


def test_a_disk_of_four_megabytes_is_filled_by_readings_and_emptied_again(place):
    device = Device(wiped(place / "disk"), World())
    with recording(device.root) as record:
        room = record.before = Room(record, 4 * MIB)

        async def fill(running) -> None:
            world = running.world
            world.offer(item(1))
            await running.until_reported("committed", 1)
            world.is_hub_up = False
            world.cut_all_links()
            # Something else on the device takes most of what is free.
            room.capacity_bytes = room.used_bytes + 100_000
            with mock.patch.object(FileSlots, "room_bytes", side_effect=lambda: room.free_bytes):
                before = -1
                while before != (before := len(world.promised)):
                    await running.passes(5)
                assert room.free_bytes < 20_000
                assert running.loaded == item(1).release.digest
                world.is_hub_up = True
                world.offer(item(2, "large"))
                report = await running.until_reported("failed", 2)
                assert report["error"]["code"] == "NO_SPACE"
                await running.until(lambda: not world.missing, "what waited is delivered")
                room.capacity_bytes = 8 * MIB
                world.offer(item(3, "large", version=2))
                await running.until_reported("committed", 3)
                await running.until_received(3)

        device.boot(fill)
        record.check()
    nothing_is_lost(device.world)


def test_a_device_that_starts_on_a_full_disk_serves_what_it_has(device):
    """Whoever filled it: the room that was set aside is enough to note the start."""
    with recording(device.root) as record:
        room = Room(record, 0)
        room.capacity_bytes = room.used_bytes
        record.before = room

        async def serves(running) -> None:
            await running.until(lambda: running.loaded == item(1).release.digest, "version 1 serves")
            room.capacity_bytes += MIB
            await running.until_received(3)

        device.boot(serves)
    nothing_is_lost(device.world)


def test_a_device_that_can_write_nothing_at_all_says_so_and_loses_nothing(device):
    with recording(device.root) as record:

        def refuse(operation) -> None:
            if isinstance(operation, Write | Create):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        record.before = refuse
        with pytest.raises(StateError) as caught:
            device.boot(lambda running: running.until_received(1))
        assert caught.value.hint
        record.before = lambda operation: None
        device.boot(lambda running: running.until_received(1))
    nothing_is_lost(device.world)
