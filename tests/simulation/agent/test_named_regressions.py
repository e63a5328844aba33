"""What went wrong with devices of other systems, each told again to the whole agent, under the name that it has there.

The trackers: thingsboard/thingsboard, eclipse-hawkbit/hawkbit, Azure/iot-hub-device-update (ADU),
Azure/azure-sdk-for-c, flightctl/flightctl, aws-greengrass/aws-greengrass-nucleus, Azure/iotedge, balena-os/meta-balena
and balena-supervisor, mendersoftware/mender and rauc/rauc-hawkbit-updater.
"""

import asyncio
import logging
from collections import Counter

import pytest

from manifests.twin import Phase
from tests.simulation.agent.small_world import World, item
from tests.simulation.agent.whole_agent import Device, Running, wiped

ON_THE_WAY = ("offered", "downloading", "verifying", "staged", "shadow", "switching", "trial")
# Enough for every timer that runs at rest to have come round.
MINUTE_S = 60.0


class PowerCutError(Exception):
    """The process is gone; what was stored is stored."""


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def device(place) -> Device:
    """A device that runs version 1 and is switched off."""
    made = Device(wiped(place / "disk"), World())
    made.boot(lambda running: end(running, 1))
    return made


async def end(running: Running, generation: int, kind: str = "good", **changes) -> dict:
    offered = item(generation, kind, **changes)
    running.world.offer(offered)
    return await running.until_reported(offered.end, generation)


def phases(world: World, generation: int) -> list[str]:
    """What the hub was told of a generation, without repetitions."""
    told: list[str] = []
    for entry in world.entries():
        if entry.get("generation") == generation and entry["phase"] not in told[-1:]:
            told.append(entry["phase"])
    return told


def cut_at(world: World, phase: str, generation: int) -> None:
    """The power goes when that was stored, and before anything of it was done or told."""

    def look(state) -> None:
        if state.phase == phase and state.offer is not None and state.offer.generation == generation:
            world.journalled = lambda state: None
            raise PowerCutError

    world.journalled = look


def boot_into_cut(device: Device, script) -> None:
    with pytest.raises(PowerCutError):
        device.boot(script)


async def for_ever(running: Running) -> None:
    await asyncio.Event().wait()


def counting_downloads(world: World) -> Counter[str]:
    asked: Counter[str] = Counter()
    world.visited = lambda target: asked.update([target])
    return asked


async def reconnect(running: Running, times: int = 1) -> None:
    """As a renewed token does it: the line is cut, and the whole desired section comes again."""
    for _ in range(times):
        running.world.cut_all_links()
        await running.until(lambda: running.world.links, "connected again")
        await running.passes(1)


@pytest.mark.parametrize("phase", ON_THE_WAY)
def test_thingsboard_10191_power_lost_in_an_update_loses_neither_the_update_nor_the_truth(device, phase):
    """Power pulled in a download: the device said UPDATED, ran the old version, and the update was forgotten."""
    world = device.world
    cut_at(world, phase, 2)

    async def offered(running: Running) -> None:
        world.offer(item(2))
        await for_ever(running)

    boot_into_cut(device, offered)
    assert "committed" not in phases(world, 2)
    device.boot(lambda running: running.until_reported("committed", 2))
    assert world.report["loadedDigest"] == item(2).release.digest


def test_hawkbit_3185_success_is_said_when_the_new_model_runs_and_has_stood_its_trial(device):
    """IN_SYNC was reported while devices still ran, or fell back to, the old image."""
    world = device.world
    device.boot(lambda running: end(running, 2))
    device.boot(lambda running: end(running, 3, "unsure"))
    for entry in world.entries():
        if entry.get("phase") == Phase.COMMITTED:
            assert entry["loadedDigest"] == item(entry["generation"]).release.digest
    assert phases(world, 2).index("trial") < phases(world, 2).index("committed")
    assert "committed" not in phases(world, 3)


@pytest.mark.parametrize("kind", ["unsure", "corrupt", "good"])
def test_adu_609_a_renewed_token_does_not_replay_the_goal_over_a_verdict(device, kind):
    """A SAS token's refresh replayed the goal state and overwrote the failed state."""
    world = device.world

    async def script(running: Running) -> None:
        report = await end(running, 2, kind)
        asked, told = counting_downloads(world), phases(world, 2)
        await reconnect(running, times=5)
        assert (phases(world, 2), dict(asked)) == (told, {})
        assert {**world.report, "trial": None} == {**report, "trial": None}

    device.boot(script)


def test_adu_625_a_success_stays_one_however_often_the_line_is_cut(device):
    """The status returned to In progress hours after Succeeded."""
    world = device.world

    async def script(running: Running) -> None:
        await end(running, 2)
        told = phases(world, 2)
        for _ in range(3):
            await running.passes(MINUTE_S)
            await reconnect(running)
        assert phases(world, 2) == told

    device.boot(script)
    assert phases(world, 2)[-1] == "committed"


def test_azure_sdk_for_c_2884_an_update_that_succeeded_is_not_told_as_failed_nor_made_again(device):
    """Reported as failed though updated, and then pushed again."""
    world = device.world
    cut_at(world, "committed", 2)

    async def offered(running: Running) -> None:
        world.offer(item(2))
        await for_ever(running)

    boot_into_cut(device, offered)
    asked = counting_downloads(world)
    device.boot(lambda running: running.until_reported("committed", 2))
    assert dict(asked) == {}
    assert not {"failed", "revertedQuarantined"} & set(phases(world, 2))


def test_flightctl_1586_an_older_offer_that_comes_late_changes_nothing(device):
    """A late older spec brought desired from 7 back to 6."""
    world = device.world

    async def script(running: Running) -> None:
        await end(running, 7)
        asked = counting_downloads(world)
        world.offer(item(6))
        await reconnect(running)
        await running.passes(60)
        assert running.loaded == item(7).release.digest
        assert (phases(world, 6), dict(asked)) == ([], {})
        await end(running, 8)

    device.boot(script)


@pytest.mark.parametrize("kind", ["unsure", "corrupt", "wrong answers", "no model"])
def test_greengrass_1161_an_update_that_failed_does_not_block_the_next_one(device, kind):
    """A broken component: its deployment never finished, and the next one waited for it."""

    async def script(running: Running) -> None:
        await end(running, 2, kind)
        await end(running, 3)

    device.boot(script)


def test_greengrass_807_an_update_that_cannot_go_on_gives_way_to_the_next(device):
    """Stuck in progress: nothing else was deployed any more."""
    world = device.world

    async def script(running: Running) -> None:
        world.is_shelf_up = False
        world.offer(item(2))
        await running.until_reported("downloading", 2)
        await running.passes(5)
        world.is_shelf_up = True
        world._files.pop(item(2).release.target)
        await end(running, 3)

    device.boot(script)


def test_greengrass_1168_power_cycles_while_an_update_is_stuck_cost_nothing(device):
    """The configuration was empty after a power cycle."""
    world = device.world
    world.is_shelf_up = False

    async def stuck(running: Running) -> None:
        world.offer(item(2))
        await running.until(lambda: running.phase == "downloading", "generation 2 is stuck")
        assert running.loaded == item(1).release.digest
        raise PowerCutError

    async def cycle(running: Running) -> None:
        await running.until(lambda: running.loaded == item(1).release.digest, "version 1 serves")
        raise PowerCutError

    boot_into_cut(device, stuck)
    for _ in range(5):
        boot_into_cut(device, cycle)
    world.is_shelf_up = True
    device.boot(lambda running: running.until_reported("committed", 2))


def test_iotedge_6971_what_failed_some_attempts_is_tried_again_without_a_restart(device):
    """A module whose image could not be pulled was never tried again until edgeAgent restarted."""
    world = device.world

    async def script(running: Running) -> None:
        world.is_shelf_up = False
        world.offer(item(2))
        report = await running.until_reported("failed", 2)
        assert report["error"]["code"] == "DOWNLOAD_FAILED"
        world.is_shelf_up = True
        await end(running, 3, version=2)
        assert running.loaded == item(2).release.digest

    device.boot(script)


def test_iotedge_5803_the_old_model_serves_while_the_new_one_is_fetched_and_tried(device):
    """The old container was stopped before the new image had been pulled."""
    world = device.world
    serving: list[str | None] = []

    async def script(running: Running) -> None:
        await running.until_received(1)
        world.journalled = lambda state: serving.append(running.loaded)
        await end(running, 2)
        world.journalled = lambda state: None

    device.boot(script)
    assert len(serving) >= 6
    assert None not in serving
    assert not world.missing


def test_meta_balena_1316_ordinary_reboots_in_a_trial_are_no_failures_of_the_model(device):
    """Benign reboots were counted as failed health checks, and the device rolled back."""
    world = device.world
    terms = {"trial": item(2).release.trial.__class__(duration_s=30.0, inferences_min=3, deadline_s=900.0)}

    async def in_trial(running: Running) -> None:
        if world.asked.release.generation != 2:
            world.offer(item(2, **terms))
        await running.until_reported("trial", 2)
        await running.passes(5)

    for _ in range(4):
        device.boot(in_trial)
    device.boot(lambda running: running.until_reported("committed", 2))
    assert world.report["trial"]["seconds"] >= 30


@pytest.mark.parametrize("is_cut", [False, True], ids=["reboots", "power cuts"])
def test_balena_supervisor_1896_a_device_does_not_fall_back_at_every_start(device, is_cut):
    """After the update the device fell back to the old release on each reboot."""
    world = device.world
    device.boot(lambda running: end(running, 2))
    told = phases(world, 2)

    async def start(running: Running) -> None:
        await running.until(lambda: running.loaded, "something serves")
        assert running.loaded == item(2).release.digest
        await running.until_received(1)
        if is_cut:
            raise PowerCutError

    for _ in range(4):
        if is_cut:
            boot_into_cut(device, start)
        else:
            device.boot(start)
    assert phases(world, 2) == told


@pytest.mark.parametrize("phase", ON_THE_WAY)
def test_mender_485_a_report_that_is_made_again_offline_is_no_transition(device, phase):
    """ "State transition loop detected": retries of a status update offline were counted as transitions."""
    world = device.world

    def look(state) -> None:
        if state.phase == phase and state.offer.generation == 2:
            world.is_hub_up = False
            world.cut_all_links()

    async def script(running: Running) -> None:
        await running.until(lambda: world.links, "connected")
        world.journalled = look
        world.offer(item(2))
        await running.until(lambda: running.phase == "committed", "committed without a hub")
        world.journalled = lambda state: None
        await running.passes(MINUTE_S / 2)
        assert running.loaded == item(2).release.digest
        world.is_hub_up = True
        await running.until_reported("committed", 2)

    device.boot(script)
    assert not world.missing


def test_hawkbit_446_what_the_device_took_back_is_not_assigned_to_it_again(device):
    """hawkbit#446 and #242: after the device's own rollback the same image was assigned and installed anew."""
    world = device.world
    device.boot(lambda running: end(running, 2, "unsure"))
    told, asked = phases(world, 2), counting_downloads(world)

    async def start(running: Running) -> None:
        await reconnect(running, times=2)
        await running.passes(60)
        assert running.loaded == item(1).release.digest

    for _ in range(2):
        device.boot(start)
    assert (phases(world, 2), dict(asked)) == (told, {})


def test_hawkbit_1399_the_version_is_never_blank_after_a_failed_update(device):
    """The version was blank after a failed update."""
    world = device.world
    before = len(list(world.entries()))

    async def script(running: Running) -> None:
        for number, kind in enumerate(("unsure", "corrupt", "wrong answers", "no model"), 2):
            await end(running, number, kind)

    device.boot(script)
    entries = list(world.entries())[before:]
    assert len(entries) > 8
    assert all(entry["loadedVersion"] for entry in entries if entry)
    assert world.report["loadedVersion"] == 1
    assert world.report["error"]["message"]


def test_rauc_hawkbit_updater_17_a_verdict_that_the_hub_did_not_hear_is_told_after_the_restart(device):
    """The feedback of an installation was lost with the reboot."""
    world = device.world
    cut_at(world, "revertedQuarantined", 2)

    async def offered(running: Running) -> None:
        world.offer(item(2, "unsure"))
        await for_ever(running)

    boot_into_cut(device, offered)
    device.boot(lambda running: running.until_reported("revertedQuarantined", 2))
    assert world.report["error"]["code"] == "TRIAL_LOW_CONFIDENCE"
    assert world.report["loadedVersion"] == 1


def test_iotedge_1764_a_status_of_a_moment_does_not_stay(device):
    """The status stayed at an error of the past: here of a hub that was away for a moment in every report."""
    world = device.world

    async def script(running: Running) -> None:
        await running.until(lambda: world.links, "connected")
        world.offer(item(2))
        while world.report.get("phase") != "committed" or world.report.get("generation") != 2:
            world.cut_all_links()
            await running.until(lambda: world.links, "connected again")
            await running.passes(1.5)
        assert "error" not in world.report

    device.boot(script)
