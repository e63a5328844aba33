"""Rollouts from end to end over a fleet in memory, told as stories."""

import dataclasses
import itertools

import msgspec
import pytest
from rollout_worlds import MODEL, RELABELLED, World, digest, fleet, outcomes, terms

from cloud_registry.adapters.sql_catalog import SqlCatalog
from cloud_registry.core.offers import offered_by_device
from cloud_registry.core.rollout.events import OffersWritten
from cloud_registry.core.rollout.view import status_as_json
from cloud_registry.errors import ConflictError, GateRefusedError, HubUnreachableError, NotFoundError, RegistryError
from cloud_registry.ports import RolloutReference
from cloud_registry.service.rollouts import RollbackRequest, RolloutRequest
from manifests.identity import ModelReference
from manifests.release import DeltaOffer


def test_a_good_version_reaches_the_fleet_wave_by_wave():
    world = World(fleet(*["commits"] * 6))
    rollout = world.settle(world.start(2, waves="1,50%,100%", terms=terms()).plan.id)
    assert rollout.state.value == "completed"
    assert [len(wave.devices) for wave in rollout.waves] == [1, 2, 3]
    assert [wave.state.value for wave in rollout.waves] == ["passed"] * 3
    assert set(outcomes(rollout).values()) == {"committed"}
    assert world.hub.running() == dict.fromkeys(world.hub.devices, 2)
    # A wave opens only after the one before it was decided, and each device is written exactly once.
    for earlier, later in itertools.pairwise(rollout.waves):
        assert earlier.decided_at <= later.opened_at
    assert [device for device, _ in world.hub.writes] == [d for wave in rollout.plan.waves for d in wave]


def test_a_bad_version_is_stopped_in_the_first_wave_and_taken_back():
    world = World(fleet(*["reverts"] * 6))
    world.install(1)
    rollout = world.settle(world.start(2, waves="2,100%", terms=terms()).plan.id)
    first, second = rollout.waves
    assert (rollout.state.value, first.state.value, second.state.value) == ("rolledBack", "stopped", "waiting")
    assert first.decision.reasons[0] == "2 of 2 devices failed (2 reverted); tolerated: 0"
    assert world.hub.running() == dict.fromkeys(world.hub.devices, 1)
    # Desired and reality agree again, at a higher generation, on touched devices; no other twin was written.
    offered = {device: entry for device, entry in world.hub.writes if entry["version"] == 2}
    restored = {device: entry for device, entry in world.hub.writes if entry["version"] == 1}
    assert set(offered) == set(restored) == set(first.devices)
    assert {entry["generation"] for entry in restored.values()} == {rollout.plan.generation + 1}
    assert {entry["epoch"] for entry in restored.values()} == {2}
    assert all(restored[device]["trial"]["maxDisagreement"] == 1.0 for device in restored)


def test_a_version_with_the_same_bytes_and_other_labels_is_rolled_out_and_back():
    devices = fleet(*["commits at once"] * 3)
    devices[1].scripts[RELABELLED] = "fails"
    world = World(devices)
    world.install(1)
    rollout = world.settle(world.start(RELABELLED, terms=terms()).plan.id)
    assert digest(RELABELLED) == digest(1)
    assert rollout.state.value == "rolledBack"
    offered = [entry for _, entry in world.hub.writes if entry["version"] == RELABELLED]
    restored = [entry for _, entry in world.hub.writes if entry["version"] == 1]
    assert [len(offered), len(restored)] == [3, 3]
    assert {tuple(entry["processing"]["labels"]) for entry in offered} == {("zero", "one")}
    assert [entry["processing"] for entry in restored] == [None] * 3


def test_a_device_that_runs_the_bytes_under_another_version_is_not_passed_over():
    world = World(fleet("commits at once", "commits at once"))
    world.install(1)
    rollout = world.settle(world.start(RELABELLED, terms=terms()).plan.id)
    assert rollout.state.value == "completed"
    assert not rollout.plan.skipped
    assert world.hub.running() == {"dev-01": RELABELLED, "dev-02": RELABELLED}


def test_a_device_that_committed_a_stopped_release_is_brought_back_too():
    world = World(fleet("commits at once", "fails", "commits at once"))
    world.install(1)
    rollout = world.settle(world.start(2, terms=terms()).plan.id)
    assert rollout.state.value == "rolledBack"
    assert outcomes(rollout) == {"dev-01": "committed", "dev-02": "failed", "dev-03": "committed"}
    assert world.hub.running() == {"dev-01": 1, "dev-02": 1, "dev-03": 1}
    assert {device["restored"] for device in status_as_json(rollout)["devices"].values()} == {True}


def test_devices_that_ran_nothing_before_lose_the_model_again():
    world = World(fleet("commits at once", "fails"))
    rollout = world.settle(world.start(2, terms=terms()).plan.id)
    assert rollout.state.value == "rolledBack"
    assert world.hub.running() == {"dev-01": None, "dev-02": None}
    assert all(MODEL not in twin.desired["models"] for twin in world.hub.twins.values())
    assert rollout.rollback.targets == {"dev-01": None, "dev-02": None}


def test_hawkbit_693_a_device_that_goes_silent_is_lost_at_its_deadline_and_counts_as_a_failure():
    world = World(fleet("commits", "is silent", "commits"))
    started = world.start(2, terms=terms(timeout_s=30.0, on_stop="pause"))
    rollout = world.settle(started.plan.id)
    assert (rollout.state.value, rollout.pause_cause) == ("paused", "gate")
    assert outcomes(rollout)["dev-02"] == "lost"
    assert rollout.waves[0].decision.reasons == ("1 of 3 devices failed (1 lost); tolerated: 0",)
    assert (rollout.waves[0].decided_at - started.created_at).total_seconds() == pytest.approx(30, abs=2)


def test_hawkbit_3185_the_next_wave_does_not_open_while_devices_still_run_the_old_image():
    world = World(fleet(*["stays downloading"] * 4))
    world.install(1)
    started = world.start(2, waves="1,100%", terms=terms(timeout_s=1000.0))
    for _ in range(200):
        rollout = world.service.tick(started.plan.id).rollout
        world.pass_time()
    assert [wave.state.value for wave in rollout.waves] == ["opening", "waiting"]
    assert len(world.hub.writes) == 1


def test_thingsboard_10191_a_device_that_says_done_and_runs_the_old_version_has_failed():
    world = World(fleet("lies"))
    world.install(1)
    rollout = world.settle(world.start(2, terms=terms(on_stop="pause")).plan.id)
    assert rollout.state.value == "paused"
    report = rollout.attempt("dev-01").report
    assert (report.outcome, report.error.code) == ("failed", "LOADED_OTHER")


def test_mikrotik_manager_140_a_crashed_controller_leaves_no_rollout_that_blocks_the_next():
    world = World(fleet(*["commits"] * 3))
    first = world.start(2, waves="1,100%", terms=terms())
    world.until(first.plan.id, lambda rollout: rollout.waves[0].state.value == "opening" and bool(world.hub.writes))
    # The process is gone with everything it held in memory; another one lists, refuses a second start, and goes on.
    world.new_controller()
    for _ in range(60):
        world.pass_time()
    assert [rollout.plan.id for rollout in world.service.rollouts(active_only=True)] == [first.plan.id]
    with pytest.raises(ConflictError, match=first.plan.id):
        world.start(3)
    assert world.settle(first.plan.id).state.value == "completed"
    assert world.settle(world.start(3).plan.id).state.value == "completed"
    assert world.hub.running() == dict.fromkeys(world.hub.devices, 3)


def test_a_late_report_brings_a_lost_device_back_to_life():
    world = World(fleet("commits late", "commits"))
    rollout = world.settle(world.start(2, terms=terms(on_stop="pause")).plan.id)
    assert outcomes(rollout) == {"dev-01": "lost", "dev-02": "committed"}
    for _ in range(60):
        world.service.tick(rollout.plan.id)
        world.pass_time()
    resumed = world.service.resume(rollout.plan.id, "it was the network")
    rollout = world.settle(resumed.plan.id)
    assert rollout.state.value == "completed"
    assert outcomes(rollout) == {"dev-01": "committed", "dev-02": "committed"}


def test_a_paused_rollout_offers_nothing_and_goes_on_where_it_was():
    world = World(fleet(*["commits"] * 4))
    started = world.start(2, waves="1,100%", terms=terms(soak_s=20))
    world.until(started.plan.id, lambda rollout: rollout.waves[0].state.value == "soaking")
    world.service.pause(started.plan.id, "lunch")
    for _ in range(100):
        rollout = world.service.tick(started.plan.id).rollout
        world.pass_time()
    assert (rollout.state.value, rollout.reason, len(world.hub.writes)) == ("paused", "lunch", 1)
    world.service.resume(started.plan.id)
    assert world.settle(started.plan.id).state.value == "completed"


def test_a_pause_gives_devices_that_were_under_way_their_full_time_again():
    world = World(fleet("commits late"))
    started = world.start(2, terms=terms(timeout_s=30))
    world.until(started.plan.id, lambda rollout: rollout.attempt("dev-01").outcome == "offered")
    for _ in range(20):
        world.pass_time()
    world.service.pause(started.plan.id)
    world.clock.sleep(3600)
    world.service.resume(started.plan.id)
    assert world.settle(started.plan.id).state.value == "completed"


def test_an_aborted_rollout_leaves_devices_as_they_are_and_can_be_taken_back_afterwards():
    world = World(fleet(*["commits"] * 4))
    world.install(1)
    started = world.start(2, waves="2,100%", terms=terms(soak_s=600))
    world.until(started.plan.id, lambda rollout: rollout.waves[0].state.value == "soaking")
    world.service.abort(started.plan.id, "changed our mind")
    aborted = world.settle(started.plan.id)
    first_wave = set(aborted.waves[0].devices)
    assert (aborted.state.value, aborted.reason) == ("aborted", "changed our mind")
    assert world.hub.running() == {device: 2 if device in first_wave else 1 for device in world.hub.devices}
    back = world.service.rollback(started.plan.id, RollbackRequest())
    assert (back.plan.kind, back.plan.origin, set(back.plan.devices)) == ("rollback", started.plan.id, first_wave)
    assert world.settle(back.plan.id).state.value == "completed"
    assert world.hub.running() == dict.fromkeys(world.hub.devices, 1)


def test_an_abort_lets_devices_finish_that_are_under_way():
    world = World(fleet("commits", "commits"))
    started = world.start(2, terms=terms())
    world.until(started.plan.id, lambda rollout: len(world.hub.writes) == 2)
    world.service.abort(started.plan.id)
    aborted = world.settle(started.plan.id)
    assert (aborted.state.value, set(outcomes(aborted).values())) == ("aborted", {"committed"})


def test_a_completed_rollout_is_taken_back_to_what_each_device_ran_before():
    world = World(fleet(*["commits"] * 4))
    world.install(1)
    mixed = world.settle(world.start(3, devices=("dev-01",)).plan.id)
    assert mixed.state.value == "completed"
    completed = world.settle(world.start(2).plan.id)
    back = world.service.rollback(completed.plan.id, RollbackRequest(reason="accuracy fell"))
    ended = world.settle(back.plan.id)
    assert (ended.state.value, ended.plan.kind, ended.reason) == ("completed", "rollback", "accuracy fell")
    assert world.hub.running() == {"dev-01": 3, "dev-02": 1, "dev-03": 1, "dev-04": 1}
    assert ended.plan.generation > completed.plan.generation


def test_a_rollback_to_a_named_version_takes_every_device_there():
    world = World(fleet(*["commits"] * 3))
    world.install(1)
    world.install(2)
    completed = world.settle(world.start(3).plan.id)
    back = world.service.rollback(completed.plan.id, RollbackRequest(to=f"{MODEL}:1", waves="1,100%"))
    assert len(back.plan.waves) == 2
    assert world.settle(back.plan.id).state.value == "completed"
    assert world.hub.running() == dict.fromkeys(world.hub.devices, 1)


def test_a_rollback_leaves_devices_alone_that_have_moved_on():
    world = World(fleet(*["commits"] * 3))
    world.install(1)
    completed = world.settle(world.start(2).plan.id)
    world.settle(world.start(3, devices=("dev-02",)).plan.id)
    back = world.service.rollback(completed.plan.id, RollbackRequest())
    assert [skipped.device for skipped in back.plan.skipped] == ["dev-02"]
    assert "moved on" in back.plan.skipped[0].reason
    world.settle(back.plan.id)
    assert world.hub.running() == {"dev-01": 1, "dev-02": 3, "dev-03": 1}


def test_a_version_that_was_deleted_meanwhile_cannot_be_gone_back_to_and_another_can():
    world = World(fleet(*["commits"] * 2))
    world.install(1)
    completed = world.settle(world.start(2).plan.id)
    world.catalog.deleted.add(1)
    with pytest.raises(NotFoundError, match="devices would go back to digits:1, and there is no digits:1"):
        world.service.rollback(completed.plan.id, RollbackRequest())
    back = world.service.rollback(completed.plan.id, RollbackRequest(to=f"{MODEL}:3"))
    assert world.settle(back.plan.id).state.value == "completed"
    assert world.hub.running() == {"dev-01": 3, "dev-02": 3}


def test_an_unfinished_rollout_names_what_it_carries_and_goes_back_to():
    world = World(fleet(*["commits"] * 2))
    catalog = SqlCatalog(world.log.engine)

    def names(version: int) -> tuple[tuple[RolloutReference, ...], int]:
        found = catalog.names(ModelReference(MODEL, version))
        return found.rollouts, found.rollouts_begun

    world.install(1)
    assert names(1) == ((), 1)
    started = world.start(2)
    assert names(1) == ((RolloutReference("r-0002", False),), 2)
    assert names(2) == ((RolloutReference("r-0002", True),), 1)
    world.service.tick(started.plan.id)
    # Taken to a third version instead of back: it is named from then on.
    world.service.rollback(started.plan.id, RollbackRequest(to=f"{MODEL}:3"))
    assert names(3) == ((RolloutReference("r-0002", False),), 1)
    world.settle(started.plan.id)
    assert [names(version) for version in (1, 2, 3)] == [((), 2), ((), 1), ((), 1)]


def test_a_controller_that_lost_its_lease_can_write_neither_twins_nor_log():
    world = World(fleet(*["commits"] * 3))
    started = world.start(2)
    slow, others = world.service, []

    def stall() -> None:
        # Its process stands still before its first write; another controller takes over and does the work.
        world.hub.before_write = lambda: None
        world.clock.sleep(60)
        others.append(world.new_controller())
        others[0].tick(started.plan.id)

    world.hub.before_write = stall
    slow.tick(started.plan.id)
    assert sorted(device for device, _ in world.hub.writes) == ["dev-01", "dev-02", "dev-03"]
    written = [record.event for record in world.log.read(started.plan.id) if isinstance(record.event, OffersWritten)]
    assert len(written) == 1
    assert not slow.tick(started.plan.id).is_driver
    assert world.settle(started.plan.id).state.value == "completed"
    assert len(world.hub.writes) == 3


def test_a_controller_stops_writing_when_its_lease_runs_out_under_its_hands():
    world = World(fleet(*["commits"] * 3))
    started = world.start(2)

    def stall() -> None:
        world.hub.before_write = lambda: None
        world.clock.sleep(60)
        assert world.log.acquire(started.plan.id, "another", world.clock.now(), 5.0) is not None

    world.hub.before_write = stall
    world.service.tick(started.plan.id)
    assert len(world.hub.writes) == 1


def test_a_wave_that_is_half_offered_when_it_is_paused_stays_half_offered():
    world = World(fleet(*["commits"] * 3))
    started = world.start(2, terms=terms())

    def lose_the_hub_after_one_write() -> None:
        world.hub.is_down = True

    world.hub.after_write = lose_the_hub_after_one_write
    with pytest.raises(HubUnreachableError):
        world.service.tick(started.plan.id)
    world.hub.is_down, world.hub.after_write = False, lambda: None
    world.service.pause(started.plan.id)
    for _ in range(10):
        world.service.tick(started.plan.id)
        world.pass_time()
    assert len(world.hub.writes) == 1
    world.service.resume(started.plan.id)
    assert world.settle(started.plan.id).state.value == "completed"
    assert len(world.hub.writes) == 3


def test_a_running_rollout_can_be_rolled_back_in_place_and_its_wave_without_offers_is_spared():
    world = World(fleet(*["commits"] * 3))
    world.install(1)
    started = world.start(2, waves="1,100%", terms=terms(soak_s=600))
    world.until(started.plan.id, lambda rollout: rollout.waves[0].state.value == "soaking")
    world.service.rollback(started.plan.id, RollbackRequest(reason="wrong fleet"))
    ended = world.settle(started.plan.id)
    assert (ended.state.value, ended.reason) == ("rolledBack", "wrong fleet")
    assert world.hub.running() == dict.fromkeys(world.hub.devices, 1)
    assert len(world.hub.writes) == 2


def test_a_device_that_the_offer_never_reached_is_spared_when_its_wave_is_taken_back():
    world = World(fleet(*["commits"] * 3))
    world.install(1)
    started = world.start(2, terms=terms())

    def lose_the_hub_after_one_write() -> None:
        world.hub.is_down = True

    world.hub.after_write = lose_the_hub_after_one_write
    with pytest.raises(HubUnreachableError):
        world.service.tick(started.plan.id)
    world.hub.is_down, world.hub.after_write = False, lambda: None
    world.service.rollback(started.plan.id, RollbackRequest())
    ended = world.settle(started.plan.id)
    ((first, offered), (second, restored)) = world.hub.writes
    assert (first, offered["version"], restored["version"]) == (second, 2, 1)
    assert {d: v["restored"] for d, v in status_as_json(ended)["devices"].items()} == {
        device: True if device == first else None for device in world.hub.devices
    }
    assert (ended.state.value, world.hub.running()) == ("rolledBack", dict.fromkeys(world.hub.devices, 1))


def test_a_rollback_that_a_device_does_not_answer_is_incomplete_and_names_it():
    world = World(fleet("commits at once", "fails"))
    world.install(1)
    started = world.start(2, terms=terms())
    world.until(started.plan.id, lambda rollout: rollout.state.value == "rollingBack")
    world.hub.devices["dev-01"].scripts = {1: "is silent"}
    ended = world.settle(started.plan.id)
    assert ended.state.value == "rollbackIncomplete"
    assert {d: v["restored"] for d, v in status_as_json(ended)["devices"].items()} == {"dev-01": False, "dev-02": True}
    # It comes back, and a second attempt is a rollout of its own.
    world.hub.devices["dev-01"].scripts = {}
    again = world.settle(world.service.rollback(started.plan.id, RollbackRequest()).plan.id)
    assert again.state.value == "completed"
    assert world.hub.running() == {"dev-01": 1, "dev-02": 1}


def test_a_rollback_rollout_that_fails_on_one_device_still_goes_to_all_and_names_it():
    world = World(fleet("commits", "commits", version=1))
    world.install(1)
    completed = world.settle(world.start(2, terms=terms()).plan.id)
    world.hub.devices["dev-02"].scripts = {1: "fails"}
    back = world.settle(world.service.rollback(completed.plan.id, RollbackRequest()).plan.id)
    assert back.state.value == "rollbackIncomplete"
    assert outcomes(back) == {"dev-01": "committed", "dev-02": "failed"}
    # It has ended: the fleet is not blocked.
    assert world.service.rollouts(active_only=True) == []


def test_a_tolerated_failure_does_not_stop_the_rollout():
    world = World(fleet(*["commits"] * 3, "fails"))
    rollout = world.settle(world.start(2, terms=terms(max_failures="1")).plan.id)
    assert rollout.state.value == "completed"
    assert rollout.waves[-1].decision.reasons == ("3 of 4 devices committed, 1 failed within tolerance",)


def test_a_gate_pause_wants_a_reason_to_go_on_and_remembers_it():
    world = World(fleet("fails", "commits", "commits"))
    started = world.start(2, waves="1,100%", terms=terms(on_stop="pause"))
    rollout = world.settle(started.plan.id)
    assert rollout.state.value == "paused"
    with pytest.raises(GateRefusedError, match="the gate paused"):
        world.service.resume(started.plan.id)
    world.service.resume(started.plan.id, "its flash is worn out")
    ended = world.settle(started.plan.id)
    assert (ended.state.value, ended.evidence().forgiven, ended.evidence().committed) == ("completed", 1, 2)
    resumed = [
        record.event
        for record in world.service.history(started.plan.id)
        if record.event.to_wire()["type"] == "rolloutResumed"
    ]
    assert [(event.reason, event.forgiven) for event in resumed] == [("its flash is worn out", ("dev-01",))]


def test_nothing_is_offered_to_devices_that_cannot_use_it_and_the_plan_says_why():
    devices = fleet(*["commits"] * 4)
    devices[1].formats = ("onnx",)
    devices[2].formats = ()
    world = World(devices)
    del world.hub.twins["dev-04"].reported["agent"]
    world.settle(world.start(2, devices=("dev-01",)).plan.id)
    plan = world.service.plan(RolloutRequest(reference=f"{MODEL}:2", waves="100%"))
    assert list(plan.devices) == ["dev-02"]
    assert {skipped.device: skipped.reason for skipped in plan.skipped} == {
        "dev-01": "already runs digits:2",
        "dev-03": "runs no format; digits:2 is given as onnx and tflite",
        "dev-04": "no agent has ever reported",
    }


def test_a_second_rollout_over_the_same_devices_is_refused_by_name():
    world = World(fleet(*["commits"] * 3))
    first = world.start(2, devices=("dev-01", "dev-02"))
    with pytest.raises(ConflictError, match=f"{first.plan.id} of digits is not finished on dev-02") as refused:
        world.start(3, devices=("dev-02", "dev-03"))
    assert f"resume {first.plan.id}" in refused.value.hint
    assert f"abort {first.plan.id}" in refused.value.hint
    # Side by side on other devices is fine, and generations still grow across both.
    other = world.start(3, devices=("dev-03",))
    assert other.plan.generation > first.plan.generation
    assert world.settle(first.plan.id).state.value == world.settle(other.plan.id).state.value == "completed"


def test_generations_grow_even_where_the_registry_lost_its_database():
    world = World(fleet("commits"))
    world.install(1)
    world.hub.twins["dev-01"].desired["models"][MODEL]["generation"] = 41
    world.hub.devices["dev-01"].generation = 41
    fresh = World(fleet("commits"))
    fresh.hub = world.hub
    started = fresh.start(2)
    assert started.plan.generation == 42
    assert fresh.settle(started.plan.id).state.value == "completed"


def test_a_hub_that_goes_away_is_waited_for():
    world = World(fleet(*["commits"] * 2))
    started = world.start(2, waves="1,100%", terms=terms())
    world.until(started.plan.id, lambda rollout: bool(world.hub.writes))
    world.hub.is_down = True
    with pytest.raises(HubUnreachableError):
        world.service.tick(started.plan.id)
    world.service.tick_all()  # says so in the log, and raises nothing
    world.clock.sleep(600)
    world.hub.is_down = False
    # Nobody looked while the hub was away, so nobody was silent: the device has committed meanwhile.
    for _ in range(4):
        world.hub.run_devices()
    assert world.settle(started.plan.id).state.value == "completed"


def test_a_device_that_vanishes_from_the_hub_has_failed():
    world = World(fleet(*["commits"] * 2))
    started = world.start(2, terms=terms(on_stop="pause"))
    del world.hub.twins["dev-02"]
    rollout = world.settle(started.plan.id)
    assert rollout.attempt("dev-02").report.error.code == "DEVICE_GONE"
    assert rollout.state.value == "paused"


def test_a_device_that_restarts_after_its_commit_is_not_undecided_again():
    world = World(fleet("restarts after commit"))
    rollout = world.settle(world.start(2, terms=terms(soak_s=100, timeout_s=10)).plan.id)
    assert rollout.state.value == "completed"


def test_an_unknown_device_or_an_empty_fleet_is_named():
    world = World(fleet("commits"))
    with pytest.raises(NotFoundError, match="dev-99"):
        world.start(2, devices=("dev-01", "dev-99"))
    with pytest.raises(NotFoundError, match="nowhere"):
        world.start(2, condition="nowhere")
    world.install(2)
    with pytest.raises(RegistryError, match="already runs digits:2"):
        world.start(2)


def test_two_controllers_do_not_drive_at_once_and_a_dead_ones_lease_runs_out():
    world = World(fleet(*["commits"] * 2))
    started = world.start(2)
    first = world.service
    assert first.tick(started.plan.id).is_driver
    second = world.new_controller()
    assert not second.tick(started.plan.id).is_driver
    assert second.controller(started.plan.id) == "controller-1"
    world.clock.sleep(6)
    assert second.tick(started.plan.id).is_driver
    assert not first.tick(started.plan.id).is_driver
    second.release(started.plan.id)
    assert first.tick(started.plan.id).is_driver


def test_a_controller_that_stops_in_good_order_is_followed_at_once_and_takes_nothing_from_others():
    world = World(fleet(*["commits"] * 2))
    started = world.start(2)
    first, second = world.service, world.new_controller()
    first.tick(started.plan.id)
    second.release_all()
    assert not second.tick(started.plan.id).is_driver
    first.release_all()
    assert second.tick(started.plan.id).is_driver


def test_the_wave_is_in_the_log_before_the_first_twin_is_written():
    world = World(fleet(*["commits"] * 3))
    started = world.start(2)
    seen: list[list[str]] = []

    def look() -> None:
        seen.append([type(record.event).__name__ for record in world.log.read(started.plan.id)])

    world.hub.before_write = look
    world.service.tick(started.plan.id)
    assert seen[0] == ["RolloutPlanned", "RolloutStarted", "WaveOpened"]


def test_a_big_wave_is_read_by_query_and_not_more_often_than_the_tier_allows():
    world = World(fleet(*["commits"] * 120))
    started = world.start(2, terms=terms(timeout_s=300))
    queries = []
    read = world.hub.module_twins
    world.hub.module_twins = lambda module_id: (queries.append(world.clock.now()), read(module_id))[1]
    rollout = world.settle(started.plan.id)
    assert rollout.state.value == "completed"
    gaps = [(later - earlier).total_seconds() for earlier, later in itertools.pairwise(queries)]
    assert len(queries) > 2
    assert min(gaps) >= 3
    assert len(world.hub.writes) == 120


def test_a_device_may_fetch_the_files_of_its_offer_and_of_its_way_back_and_deltas_between_them():
    world = World(fleet("commits at once", "is silent"))
    world.install(1)
    rollout = world.start(2, waves="1,100%", terms=terms())
    rollout = world.service.tick(rollout.plan.id).rollout
    delta = DeltaOffer(base_digest=digest(1), digest=digest(3), size_bytes=5, target="digits/2/deltas/short")
    contents = {
        key: msgspec.structs.replace(content, delta=(delta,) if content.version == 2 else ())
        for key, content in rollout.plan.contents.items()
    }
    rollout = dataclasses.replace(rollout, plan=msgspec.structs.replace(rollout.plan, contents=contents))
    (opened,) = rollout.opened_devices
    files = {"digits/2/model.onnx", "digits/2/deltas/short", "digits/1/model.onnx"}
    assert offered_by_device([rollout]) == {opened: files}
